package oracle

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/runtime/services"
)

// World is what a service proxy knows: its node and all objects.
type World struct {
	Node     services.Node
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
}

// Clone copies the world and everything in it.
func (w *World) Clone() *World {
	out := &World{Node: w.Node}
	for _, s := range w.Services {
		out.Services = append(out.Services, s.DeepCopy())
	}
	for _, s := range w.Slices {
		out.Slices = append(out.Slices, s.DeepCopy())
	}
	return out
}

// YAML shows the world to people.
func (w *World) YAML() string {
	var parts []string
	add := func(v any) {
		data, err := yaml.Marshal(v)
		if err != nil {
			data = []byte("# " + err.Error())
		}
		parts = append(parts, string(data))
	}
	add(w.Node)
	for _, s := range w.Services {
		add(s)
	}
	for _, s := range w.Slices {
		add(s)
	}
	return strings.Join(parts, "---\n")
}

// slicesOf are the slices that name a Service.
func (w *World) slicesOf(svc types.NamespacedName) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range w.Slices {
		if s.Namespace == svc.Namespace && s.Labels[discoveryv1.LabelServiceName] == svc.Name {
			out = append(out, s)
		}
	}
	return out
}

func nameOf(o interface {
	GetNamespace() string
	GetName() string
}) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// without returns a list without the element at i.
func without[T any](list []T, i int) []T {
	return slices.Delete(slices.Clone(list), i, i+1)
}
