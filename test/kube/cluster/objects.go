package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Apply creates Services and EndpointSlices, or makes those that exist like these, status of Services included. An empty
// namespace is "default". What fails, fails the test.
func (c *Cluster) Apply(objects ...metav1.Object) {
	c.t.Helper()
	for _, o := range objects {
		c.must(c.TryApply(c.t.Context(), o))
	}
}

// TryApply is Apply of one object that returns the error.
func (c *Cluster) TryApply(ctx context.Context, o metav1.Object) error {
	if o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	switch o := o.(type) {
	case *corev1.Service:
		return c.applyService(ctx, o)
	case *discoveryv1.EndpointSlice:
		return apply(ctx, c.Client.DiscoveryV1().EndpointSlices(o.Namespace), o)
	}
	return fmt.Errorf("apply a %T: want a Service or an EndpointSlice", o)
}

// applyService writes the status too, which Create and Update leave out.
func (c *Cluster) applyService(ctx context.Context, svc *corev1.Service) error {
	services := c.Client.CoreV1().Services(svc.Namespace)
	status := svc.Status
	if err := apply(ctx, services, svc); err != nil {
		return err
	}
	if len(status.LoadBalancer.Ingress) == 0 && len(svc.Status.LoadBalancer.Ingress) == 0 {
		return nil
	}
	svc.Status = status
	got, err := services.UpdateStatus(ctx, svc, metav1.UpdateOptions{})
	if err == nil {
		*svc = *got
	}
	return err
}

// store is what a client has for each kind of object.
type store[T metav1.Object] interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
	Get(context.Context, string, metav1.GetOptions) (T, error)
}

// apply creates or updates an object, and fills in what the API server chose.
func apply[P interface {
	*T
	metav1.Object
}, T any](ctx context.Context, s store[P], o P) error {
	// Not created first: a Service with an address is then refused for the address, which it has itself.
	have, err := s.Get(ctx, o.GetName(), metav1.GetOptions{})
	var got P
	switch {
	case apierrors.IsNotFound(err):
		o.SetResourceVersion("")
		got, err = s.Create(ctx, o, metav1.CreateOptions{})
	case err == nil:
		o.SetResourceVersion(have.GetResourceVersion())
		got, err = s.Update(ctx, o, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	*o = *got
	return nil
}

// Patch changes fields of a Service or an EndpointSlice, whichever the kind is of, by a merge patch: a value that
// json.Marshal takes.
func (c *Cluster) Patch(kind metav1.Object, name string, patch any) {
	c.t.Helper()
	data, err := json.Marshal(patch)
	c.must(err)
	namespace := kind.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	switch kind.(type) {
	case *corev1.Service:
		_, err = c.Client.CoreV1().Services(namespace).Patch(c.t.Context(), name, types.MergePatchType, data, metav1.PatchOptions{})
	case *discoveryv1.EndpointSlice:
		_, err = c.Client.DiscoveryV1().EndpointSlices(namespace).Patch(c.t.Context(), name, types.MergePatchType, data, metav1.PatchOptions{})
	default:
		err = fmt.Errorf("patch a %T: want a Service or an EndpointSlice", kind)
	}
	c.must(err)
}

// AwaitHealthy waits until the node's service proxy answers /healthz with 200: it has programmed all that it knew.
func (n *Node) AwaitHealthy() {
	n.c.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}}
	url := "http://" + netip.AddrPortFrom(n.IPs[0], HealthPort).String() + "/healthz"
	n.c.await("wait for the service proxy of "+n.Name, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		return nil
	})
}
