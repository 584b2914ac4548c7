package running

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// fence tells when a node serves all that was written to the API before: a Service whose port and whose only endpoint
// it changes, each of them after the others of its kind, so that each watch brings it last.
type fence struct {
	t     testing.TB
	c     *cluster.Cluster
	p     *prober
	svc   *corev1.Service
	slice *discoveryv1.EndpointSlice
	n     int
}

// fenceNumber is where the fence's endpoints begin: see remoteAddr.
const fenceNumber = 250 << 8

// fencePort is where they answer. Ports of backends are below 1024: labs use all others for connections that go out.
const fencePort = 880

func newFence(t testing.TB, c *cluster.Cluster, p *prober) *fence {
	return &fence{
		t: t, c: c, p: p,
		svc: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "fence"}},
		slice: &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "fence", Labels: map[string]string{discoveryv1.LabelServiceName: "fence"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Port: new(int32(fencePort)), Name: new(""), Protocol: new(corev1.ProtocolTCP)}},
		},
	}
}

// raise writes the fence and returns how to see that it has come.
func (f *fence) raise(ctx context.Context) (target, backend string, err error) {
	f.n++
	addr := remoteAddr(0, fenceNumber+f.n%250)
	f.svc.Spec.Ports = []corev1.ServicePort{{Port: int32(10000 + f.n), TargetPort: intOrString(fencePort), Protocol: corev1.ProtocolTCP}}
	f.slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{addr.String()}}}
	if err := f.c.TryApply(ctx, f.svc); err != nil {
		return "", "", fmt.Errorf("fence: %w", err)
	}
	if err := f.c.TryApply(ctx, f.slice); err != nil {
		return "", "", fmt.Errorf("fence: %w", err)
	}
	return fmt.Sprintf("%s:%d", f.svc.Spec.ClusterIP, 10000+f.n), netip.AddrPortFrom(addr, fencePort).String(), nil
}

// await waits until the node serves what was written before.
func (f *fence) await() {
	f.t.Helper()
	target, backend, err := f.raise(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	f.awaitAt(target, backend)
}

func (f *fence) awaitAt(target, backend string) {
	f.t.Helper()
	began := time.Now()
	eventually(f.t, "wait until the node serves what was written", func() string {
		if r := f.p.ask(probe.TCP, target, 1)[0]; r.Server != backend {
			return fmt.Sprintf("after %s, %s leads to %q (%s), want %s", time.Since(began), target, r.Server, r.Error, backend)
		}
		return ""
	})
}
