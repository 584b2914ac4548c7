package services

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/bpf"
)

// FuzzObjects gives Ports and a Table objects of any content, in the form that
// the API server sends and in the one that people write.
func FuzzObjects(f *testing.F) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 5))
		svc, sl := randomService(r), randomSlice(r)
		sl.Labels[discoveryv1.LabelServiceName] = svc.Name
		for _, marshal := range []func(any) ([]byte, error){json.Marshal, func(o any) ([]byte, error) {
			return o.(interface{ Marshal() ([]byte, error) }).Marshal()
		}} {
			a, err := marshal(svc)
			if err != nil {
				f.Fatal(err)
			}
			b, err := marshal(sl)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(a, b)
		}
	}
	f.Add([]byte(`{"metadata":{"name":"kubernetes","namespace":"default"},"spec":{"clusterIP":"1.1.1.1","ports":[{"port":443}],"sessionAffinity":"ClientIP","internalTrafficPolicy":"Local"}}`),
		[]byte(`{"addressType":"IPv4","endpoints":[{},{"addresses":[]},{"addresses":["1.1.1.2"],"hints":{}}],"ports":[{"port":6443},{"name":"","port":6443},{"name":""}]}`))
	f.Fuzz(func(t *testing.T, service, slice []byte) {
		var svc corev1.Service
		var sl discoveryv1.EndpointSlice
		if json.Unmarshal(service, &svc) != nil && svc.Unmarshal(service) != nil ||
			json.Unmarshal(slice, &sl) != nil && sl.Unmarshal(slice) != nil {
			return
		}
		node := thisNode()
		before, beforeSlice := svc.DeepCopy(), sl.DeepCopy()
		ports, problems := Ports(&svc, []*discoveryv1.EndpointSlice{&sl, nil, &sl}, node)
		mustHold(t, ports)
		once, _ := Ports(&svc, []*discoveryv1.EndpointSlice{&sl}, node)
		if !EqualPorts(ports, once) {
			t.Errorf("a slice twice is\n%v\nonce\n%v", ports, once)
		}
		for _, p := range problems {
			if p.Message == "" || p.Reason == "" || p.Kind == "" {
				t.Errorf("a problem says nothing: %+v", p)
			}
		}
		if !sameObject(t, before, &svc) || !sameObject(t, beforeSlice, &sl) {
			t.Error("the objects have changed")
		}
		table := NewTable(node)
		table.SetService(&svc)
		table.SetSlice(&sl)
		strip := &Stripper{}
		stripped, _ := strip.Strip(before)
		strippedSlice, _ := strip.Strip(beforeSlice)
		again, _ := Ports(stripped.(*corev1.Service), []*discoveryv1.EndpointSlice{strippedSlice.(*discoveryv1.EndpointSlice)}, node)
		if !EqualPorts(again, once) {
			t.Errorf("stripped it is\n%v\nwhole\n%v", again, once)
		}
	})
}

func sameObject(t *testing.T, a, b interface{ Marshal() ([]byte, error) }) bool {
	t.Helper()
	x, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Equal(x, y)
}

// mustHold checks what holds of the Ports of any Service.
func mustHold(t *testing.T, ports []Port) {
	t.Helper()
	has := map[bpf.FrontendKey]bool{}
	if !slices.IsSortedFunc(ports, func(a, b Port) int { return a.Key.Compare(b.Key) }) {
		t.Errorf("they are not sorted: %v", ports)
	}
	for i, p := range ports {
		if i > 0 && ports[i-1].Key == p.Key {
			t.Errorf("%v is there twice", p.Key)
		}
		if err := p.Validate(); err != nil && !p.Starved() {
			t.Error(err)
		}
		if len(p.Kinds) != len(p.Frontends) {
			t.Errorf("%v has %d kinds for %d frontends", p.Key, len(p.Kinds), len(p.Frontends))
		}
		for _, k := range p.Frontends {
			if has[k] {
				t.Errorf("%v is there twice", k)
			}
			has[k] = true
		}
		for _, l := range [][]netip.AddrPort{p.Backends, p.Local, p.Serving} {
			if !slices.IsSortedFunc(l, netip.AddrPort.Compare) || len(slices.Compact(slices.Clone(l))) != len(l) {
				t.Errorf("%v has %v", p.Key, l)
			}
		}
		if len(p.Local) > 0 && len(p.Backends) == 0 {
			t.Errorf("%v has local backends only: %v", p.Key, p.Local)
		}
		local := slices.ContainsFunc(slices.Collect(maps.Values(p.Flags)), func(f bpf.FrontendFlags) bool {
			return f&(bpf.FrontendLocalPolicy|bpf.FrontendExternalLocal) != 0
		})
		if (p.Local != nil) != (local || p.ExternalLocal) {
			t.Errorf("%v has local backends %v by flags %v, external %t", p.Key, p.Local, p.Flags, p.ExternalLocal)
		}
	}
}
