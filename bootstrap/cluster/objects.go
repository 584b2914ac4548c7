package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/deploy"
)

// kinds are those that are applied, with where the API has them.
var kinds = map[string]struct {
	group, version, resource string
	namespaced               bool
}{
	"ServiceAccount":                   {"", "v1", "serviceaccounts", true},
	"ConfigMap":                        {"", "v1", "configmaps", true},
	"DaemonSet":                        {"apps", "v1", "daemonsets", true},
	"ClusterRole":                      {"rbac.authorization.k8s.io", "v1", "clusterroles", false},
	"ClusterRoleBinding":               {"rbac.authorization.k8s.io", "v1", "clusterrolebindings", false},
	"ValidatingAdmissionPolicy":        {"admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", false},
	"ValidatingAdmissionPolicyBinding": {"admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", false},
}

// object is one of the API's, as JSON decodes it.
type object map[string]any

func (o object) kind() string { s, _ := o["kind"].(string); return s }

func (o object) meta() map[string]any { m, _ := o["metadata"].(map[string]any); return m }

func (o object) name() string { s, _ := o.meta()["name"].(string); return s }

func (o object) version() string { s, _ := o.meta()["resourceVersion"].(string); return s }

// String names it for people, and as a key of the record.
func (o object) String() string { return o.kind() + " " + o.name() }

// path is where the API has it.
func (o object) path() (string, error) {
	k, known := kinds[o.kind()]
	if !known {
		return "", fmt.Errorf("a %s is not applied by this program", o.kind())
	}
	p := "/apis/" + k.group + "/" + k.version
	if k.group == "" {
		p = "/api/" + k.version
	}
	if k.namespaced {
		p += "/namespaces/" + Namespace
	}
	return path.Join(p, k.resource, o.name()), nil
}

// render gives the objects to be applied, in their order.
func render(v deploy.Values) (list []object, err error) {
	files, err := deploy.Render(v)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		for _, doc := range deploy.Documents(file) {
			var o object
			if err := yaml.Unmarshal(doc, &o); err != nil {
				return nil, fmt.Errorf("read what the chart makes: %w", err)
			}
			list = append(list, o)
		}
	}
	return list, nil
}

// daemonSetOf is the DaemonSet among objects. What render gives always has one.
func daemonSetOf(objects []object) object {
	return objects[slices.IndexFunc(objects, func(o object) bool { return o.kind() == "DaemonSet" })]
}

// apply writes an object by server-side apply, and returns it as it then is. A field that somebody else has set to another value is an
// error that names them, unless force is set.
func (c *client) apply(ctx context.Context, o object, force, dry bool) (object, error) {
	p, err := o.path()
	if err != nil {
		return nil, err
	}
	q := url.Values{"fieldManager": {Manager}, "fieldValidation": {"Strict"}}
	if force {
		q.Set("force", "true")
	}
	if dry {
		q.Set("dryRun", "All")
	}
	var now object
	err = c.do(ctx, request{method: http.MethodPatch, path: p, query: q, kind: "application/apply-patch+yaml", body: o, into: &now})
	if err != nil {
		return nil, fmt.Errorf("apply %s: %w", o, err)
	}
	return now, nil
}

// read gives an object as the API has it, nil: it is not there.
func (c *client) read(ctx context.Context, o object) (object, error) {
	p, err := o.path()
	if err != nil {
		return nil, err
	}
	var now object
	there, err := c.optional(ctx, p, &now)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o, err)
	}
	if !there {
		return nil, nil
	}
	return now, nil
}

// managed reports whether the object has fields that this program has applied.
func (o object) managed() bool {
	entries, _ := o.meta()["managedFields"].([]any)
	for _, e := range entries {
		m, _ := e.(map[string]any)
		if m["manager"] == Manager && m["operation"] == "Apply" {
			return true
		}
	}
	return false
}

// content is what of an object somebody has written, without what the API server adds.
func (o object) content() object {
	data, err := json.Marshal(o)
	if err != nil {
		return nil
	}
	var copied object
	if json.Unmarshal(data, &copied) != nil {
		return nil
	}
	delete(copied, "status")
	for _, name := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"} {
		delete(copied.meta(), name)
	}
	return copied
}
