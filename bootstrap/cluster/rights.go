package cluster

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// right is one that a command needs.
type right struct {
	group, resource, subresource, namespace string
	verbs                                   []string
}

// String is the right as a person would grant it.
func (r right) String() string {
	s := r.resource
	if r.subresource != "" {
		s += "/" + r.subresource
	}
	if r.group != "" {
		s += "." + r.group
	}
	s = strings.Join(r.verbs, ", ") + " " + s
	if r.namespace != "" {
		s += " in namespace " + r.namespace
	}
	return s
}

// readRights are those of a look, and of status.
func readRights() []right {
	return []right{
		{"", "nodes", "", "", []string{"list"}},
		{"", "services", "", "", []string{"list"}},
		{"", "pods", "", Namespace, []string{"list"}},
		{"", "configmaps", "", Namespace, []string{"get"}},
		{"apps", "daemonsets", "", "", []string{"list"}},
	}
}

// installRights are those of install, without those of the look.
func installRights() []right {
	rights := []right{
		{"", "nodes", "", "", []string{"patch"}},
		{"", "pods", "", Namespace, []string{"create", "delete"}},
		{"", "pods", "log", Namespace, []string{"get"}},
	}
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		k := kinds[name]
		r := right{k.group, k.resource, "", "", []string{"get", "create", "patch"}}
		if k.namespaced {
			r.namespace = Namespace
		}
		rights = append(rights, r)
	}
	return rights
}

// uninstallRights are those of uninstall, without those of the look.
func uninstallRights() []right {
	rights := installRights()
	for i, r := range rights {
		if slices.Contains(r.verbs, "patch") && r.resource != "nodes" {
			rights[i].verbs = append(slices.Clone(r.verbs), "update", "delete")
		}
	}
	return append(rights, right{"", "nodes", "status", "", []string{"patch"}})
}

// merged has one right for each resource, with all verbs.
func merged(rights []right) (out []right) {
	for _, r := range rights {
		i := slices.IndexFunc(out, func(o right) bool {
			return o.group == r.group && o.resource == r.resource && o.subresource == r.subresource && o.namespace == r.namespace
		})
		if i < 0 {
			i = len(out)
			out = append(out, right{r.group, r.resource, r.subresource, r.namespace, nil})
		}
		for _, verb := range r.verbs {
			if !slices.Contains(out[i].verbs, verb) {
				out[i].verbs = append(out[i].verbs, verb)
			}
		}
	}
	return out
}

// missing are the rights of a list, and of every look at the cluster, that the user has not.
func (c *client) missing(ctx context.Context, rights []right) ([]string, error) {
	more, err := c.dataplaneRights(ctx)
	if err != nil {
		return nil, err
	}
	rights = merged(slices.Concat(readRights(), more, rights))
	denied := make([]right, len(rights))
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, r := range rights {
		denied[i] = r
		denied[i].verbs = nil
		for _, verb := range r.verbs {
			group.Go(func() error {
				allowed, err := c.may(ctx, r, verb)
				if err != nil || allowed {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				denied[i].verbs = append(denied[i].verbs, verb)
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []string
	for _, d := range denied {
		if len(d.verbs) > 0 {
			slices.Sort(d.verbs)
			out = append(out, d.String())
		}
	}
	return out, nil
}

// may asks whether the user has a right.
func (c *client) may(ctx context.Context, r right, verb string) (bool, error) {
	attributes := map[string]any{"group": r.group, "resource": r.resource, "subresource": r.subresource, "namespace": r.namespace, "verb": verb}
	review := map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": attributes},
	}
	var answer struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	err := c.do(ctx, request{
		method: http.MethodPost, path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
		kind: "application/json", body: review, into: &answer,
	})
	return answer.Status.Allowed, err
}
