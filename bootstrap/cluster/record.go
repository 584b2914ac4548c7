package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/firsthop/firsthop/deploy"
)

// RecordName is the name of the ConfigMap that says what was given to install, and what was there before.
const RecordName = "firsthop-cluster"

// record is its content.
type record struct {
	Version string        // of the program that wrote it
	Values  deploy.Values // that were applied
	LeftOut []string      // nodes that get no pod, until they are included
	// Former has every object that install has written: null where there was none, else what it was.
	Former map[string]object
}

func recordObject(r record) (object, error) {
	values, err := json.Marshal(r.Values)
	if err != nil {
		return nil, err
	}
	leftOut, err := json.Marshal(r.LeftOut)
	if err != nil {
		return nil, err
	}
	former, err := json.Marshal(r.Former) // sorted, so the same each time
	if err != nil {
		return nil, err
	}
	return object{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": RecordName, "namespace": Namespace, "labels": map[string]any{"app.kubernetes.io/name": "firsthop"}},
		"data":     map[string]any{"version": r.Version, "values": string(values), "leftOut": string(leftOut), "former": string(former)},
	}, nil
}

// readRecord reads it, nil: there is none.
func (c *client) readRecord(ctx context.Context) (*record, error) {
	o, err := c.read(ctx, object{"kind": "ConfigMap", "metadata": map[string]any{"name": RecordName}})
	if err != nil || o == nil {
		return nil, err
	}
	data, _ := o["data"].(map[string]any)
	text := func(name, otherwise string) []byte { s, _ := data[name].(string); return []byte(cmp.Or(s, otherwise)) }
	r := &record{Version: string(text("version", "")), Former: map[string]object{}}
	if err := json.Unmarshal(text("values", ""), &r.Values); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: values: %w", Namespace, RecordName, err)
	}
	if err := json.Unmarshal(text("leftOut", "[]"), &r.LeftOut); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: leftOut: %w", Namespace, RecordName, err)
	}
	if err := json.Unmarshal(text("former", ""), &r.Former); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: former: %w", Namespace, RecordName, err)
	}
	return r, nil
}

// restore makes an object what it was before, or removes it.
func (c *client) restore(ctx context.Context, o, former object) error {
	p, err := o.path()
	if err != nil {
		return err
	}
	if former == nil {
		return c.remove(ctx, p, nil)
	}
	now, err := c.read(ctx, o)
	if err != nil {
		return err
	}
	back := former.content()
	method, at := http.MethodPut, p
	if now == nil {
		method, at = http.MethodPost, p[:len(p)-len(o.name())-1]
	} else {
		back.meta()["resourceVersion"] = now.version()
	}
	return c.do(ctx, request{method: method, path: at, kind: "application/json", body: back})
}

// record notes what is there, before anything of it is written.
func (w *work) record(objects []object) error {
	r, err := w.readRecord(w.ctx)
	if err != nil {
		return err
	}
	if r == nil {
		r = &record{Former: map[string]object{}}
	}
	r.Version, r.Values = w.Version, w.Values
	r.LeftOut = slices.Compact(slices.Sorted(slices.Values(w.LeaveOut)))
	for _, o := range objects {
		if _, noted := r.Former[o.String()]; noted {
			continue
		}
		now, err := w.read(w.ctx, o)
		if err != nil {
			return err
		}
		if now != nil && now.managed() {
			now = nil // a record was here, and was lost
		}
		r.Former[o.String()] = now.content()
	}
	o, err := recordObject(*r)
	if err != nil {
		return err
	}
	return w.write(o)
}
