package sync

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/test/lab"
)

// settle flushes until nothing is left to do, as the loop does.
func (r *rig) settle() {
	r.t.Helper()
	r.flush()
	for range 3 {
		if !r.l.liveness.Waiting().IsZero() {
			r.flush()
		}
	}
	if r.l.cfg.Writer.Pending() || !r.l.liveness.Late().IsZero() {
		r.t.Fatal("something is always pending")
	}
}

// becomes is want, of what is taken away after a grace period.
func (r *rig) becomes(front, want string) {
	r.t.Helper()
	lab.Await(r.t, front+": "+want, func() bool { return r.goes(front, bpf.TCP) == want })
}

func (r *rig) cidr(name string, cidrs ...string) {
	ev := watch.Event{Resource: watch.ServiceCIDRs, Name: types.NamespacedName{Name: name}}
	if len(cidrs) > 0 {
		ev.Object = &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
	}
	r.l.Handle([]watch.Event{ev})
}

func TestServiceRangeIsWrittenAfterTheFirstFlush(t *testing.T) {
	r := newRig(t)
	r.cidr("kubernetes", "10.96.0.0/12", "fd00:96::/112")
	r.sync(watch.ServiceCIDRs, watch.Services, watch.Nodes)
	r.flush()
	r.want("10.96.0.77:80", "not a frontend") // the slices are still missing
	r.sync(watch.EndpointSlices)
	r.flush()
	r.want("10.96.0.77:80", "not a frontend") // it may be of a Service that this very write brings
	r.settle()
	r.want("10.96.0.77:80", "refused")
	r.want("[fd00:96::77]:80", "refused")
	if got := r.l.cfg.Writer.Status().ServiceRange; len(got) != 2 || got[0].String() != "10.96.0.0/12" {
		t.Errorf("status names %v", got)
	}
	r.becomes("10.95.255.255:80", "not a frontend")

	other := service("mesh", "10.96.0.77", 80, corev1.ProtocolTCP)
	other.Labels = map[string]string{services.LabelProxyName: "mesh"}
	r.tell(other)
	r.settle()
	r.becomes("10.96.0.77:80", "not a frontend")
	r.becomes("10.96.0.78:80", "refused")
	r.tell(service("mesh", "10.96.0.77", 80, corev1.ProtocolTCP)) // ours now, without endpoints
	r.settle()
	r.becomes("10.96.0.77:80", "refused")
	r.l.Handle([]watch.Event{{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: "mesh"}}})
	r.settle()
	r.becomes("10.96.0.77:80", "refused")

	r.l.SetHostAddrs(hostAddrs("10.96.0.70/28"))
	r.settle()
	r.becomes("10.96.0.77:80", "not a frontend")
	r.becomes("10.96.0.80:80", "refused")
	r.l.SetAPIServers(apihealth.Addresses{Anywhere: []netip.Addr{netip.MustParseAddr("10.96.0.80")}})
	r.settle()
	r.becomes("10.96.0.80:6443", "not a frontend")

	if err := r.l.cfg.Writer.ClearServiceRange(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.becomes("10.96.0.90:80", "not a frontend")
	r.l.SetAPIServers(apihealth.Addresses{})
	r.settle()
	r.becomes("10.96.0.90:80", "refused")

	r.cidr("kubernetes")
	r.settle()
	r.becomes("10.96.0.78:80", "not a frontend")
}

func TestServiceRangeIsNotClearedBeforeTheFirstFlush(t *testing.T) {
	former := newRig(t)
	former.tell(service("web", "10.96.1.1", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	former.syncAll()
	former.settle()
	r := newRig(t)
	r.f = former.f
	r.l.cfg.Writer.SetStore(r.f)
	if err := r.l.cfg.Writer.ClearServiceRange(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want("10.96.1.1:80", "[10.0.0.1:80]") // which it has not heard of yet
}

func TestServiceRangeWithoutCIDRsStays(t *testing.T) {
	for _, tc := range []struct {
		name  string
		given []netip.Prefix
		want  string
	}{
		{"the API does not say", nil, "refused"},
		{"none are wanted", []netip.Prefix{}, "not a frontend"},
		{"another one is given", []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")}, "not a frontend"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			if err := r.f.PutSourceRanges([]bpf.SourceRangeKey{bpf.SourceRangeKeyOf(bpf.IndexServiceCIDR, netip.MustParsePrefix("10.96.0.0/12"))}); err != nil {
				t.Fatal(err)
			}
			r.l.serviceRange = newServiceRange(tc.given)
			r.sync(watch.Services, watch.EndpointSlices, watch.Nodes)
			r.settle()
			r.becomes("10.96.0.77:80", tc.want)
			if len(tc.given) > 0 {
				r.becomes("10.200.0.1:80", "refused")
			}
		})
	}
}
