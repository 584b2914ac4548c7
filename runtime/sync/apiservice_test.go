package sync

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// The API servers may all have moved while nobody was there: what the watches wait for comes by the Service IP.
func TestAPIServiceIsRedirectedFirst(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.77:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.77:6443]")
	writes := r.f.writes()
	r.flush()
	if r.f.writes() != writes {
		t.Errorf("%d writes for nothing", r.f.writes()-writes)
	}
	r.tell(kubernetes("192.0.2.77", "192.0.2.78")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.77:6443]") // the other one is not known to live
}

func TestAPIServiceFollowsLiveServers(t *testing.T) {
	r := newRig(t)
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
	all := published[APIServers](r)
	if last := all[len(all)-1]; !slices.Equal(last.Endpoints, addrPorts("192.0.2.10:6443", "192.0.2.11:6443")) || !slices.Equal(last.Services, addrPorts("10.96.0.1:443")) {
		t.Errorf("published %v", last)
	}
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP)) // an API that names nobody
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.Handle([]watch.Event{{Resource: watch.Services, Name: services.APIService}}) // or has no such Service
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
}

// A former runtime, or init, has put a dead API server out, or was told which to use: its choice stays until there is news.
func TestAPIServiceKeepsWhatItAdopted(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.11:6443")
	r.l.Adopt(r.l.api.addrs, addrPorts("192.0.2.11:6443"))
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443", "192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
}

// A Local policy on the API service must not lead to the dead one of this node.
func TestAPIServiceLocalTrafficLeadsToLiveServers(t *testing.T) {
	r := newRig(t)
	svc, s := service("kubernetes", "10.96.0.1", 443, corev1.ProtocolTCP), slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.10", "192.0.2.11")
	local, node := corev1.ServiceInternalTrafficPolicyLocal, "node-a"
	svc.Spec.InternalTrafficPolicy = &local
	s.Endpoints[0].NodeName = &node
	r.tell(svc, s)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
}

// For clients outside, what externalTrafficPolicy Local is about has no endpoint here then, and cluster IPs go on as for clients inside.
func TestAPIServiceLocalTrafficOfClientsOutside(t *testing.T) {
	r := newRig(t)
	svc, s := service("kubernetes", "10.96.0.1", 443, corev1.ProtocolTCP), slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.10", "192.0.2.11")
	svc.Spec.InternalTrafficPolicy, svc.Spec.ExternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal), corev1.ServiceExternalTrafficPolicyLocal
	svc.Spec.ExternalIPs = []string{"203.0.113.1"}
	s.Endpoints[0].NodeName = new("node-a")
	r.l.node.ClusterIPsOutside = true
	r.tell(svc, s)
	r.l.update(func() { r.l.apply(r.l.table.SetNode(r.l.node.Node)) })
	r.syncAll()
	r.flush()
	wantOutside := func(cluster, external string) {
		t.Helper()
		for addr, want := range map[string]string{"10.96.0.1:443": cluster, "203.0.113.1:443": external} {
			state, err := r.f.Read()
			if err != nil {
				t.Fatal(err)
			}
			v := state.LookupOutside(netip.MustParseAddr("198.51.100.7"), bpf.FrontendKeyOf(netip.MustParseAddrPort(addr), bpf.TCP))
			if got := fmt.Sprint(v.Kind, v.Backends); got != want {
				t.Errorf("%s from outside: %s, want %s", addr, got, want)
			}
		}
	}
	wantOutside("translated[192.0.2.10:6443]", "translated[192.0.2.10:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	wantOutside("translated[192.0.2.11:6443]", "dropped[]")
}

// A kubeconfig may name the Service IP, and a runtime that has not been told of it may find it alive.
func TestAPIServiceNeverLeadsToItself(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.l.SetLive(apihealth.Set{V4: addrPorts("10.96.0.1:443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	r.tell(kubernetes("192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("10.96.0.1:443", "192.0.2.12:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.12:6443]")
}

// evil is a Service of a tenant, of any age, that has an external IP.
func evil(ip string) *corev1.Service {
	svc := service("evil", "10.96.66.1", 6443, corev1.ProtocolTCP)
	svc.CreationTimestamp = metav1.Unix(1, 0)
	svc.Spec.ExternalIPs = []string{ip}
	return svc
}

func reservedAre(addrs ...string) apihealth.Addresses {
	return apihealth.Addresses{Reserved: addrPorts(addrs...)}
}

func TestAPIServiceReservesBeforeTheFirstWrite(t *testing.T) {
	r := newRig(t)
	r.l.inputs.apiServers = false
	r.seed("192.0.2.11:6443")
	r.tell(kubernetes("192.0.2.11", "192.0.2.12")...)
	r.tell(evil("192.0.2.11"), slice("evil", 6443, corev1.ProtocolTCP, "10.0.0.66"))
	r.syncAll()
	if ready, _ := r.l.ready(); ready {
		t.Fatal("writes before it knows the API servers")
	}
	r.l.SetAPIServers(reservedAre("192.0.2.11:6443"))
	r.flush()
	r.want("192.0.2.11:6443", "not a frontend")
	r.want("10.96.66.1:6443", "[10.0.0.66:6443]")
	r.want("10.96.0.1:443", "[192.0.2.11:6443 192.0.2.12:6443]")
}

func TestAPIServiceReservesLiveServers(t *testing.T) {
	r := newRig(t)
	var logs bytes.Buffer
	r.l.problems.log = slog.New(slog.NewTextHandler(&logs, nil))
	r.tell(kubernetes("192.0.2.11")...)
	r.tell(evil("192.0.2.13"), slice("evil", 6443, corev1.ProtocolTCP, "10.0.0.66"))
	r.syncAll()
	r.flush()
	r.want("192.0.2.13:6443", "[10.0.0.66:6443]")

	// The slice that names a new API server is enough.
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.11", "192.0.2.13"))
	r.flush()
	r.becomes("192.0.2.13:6443", "not a frontend")
	if got := len(r.l.Problems()); got != 1 {
		t.Errorf("%d problems, want 1", got)
	}
	if seen := r.l.Problems(); len(seen) != 1 || seen[0].Reason != services.AddressReserved || seen[0].Object.String() != "default/evil" || !strings.Contains(seen[0].Message, "192.0.2.13:6443") {
		t.Errorf("status has %+v", seen)
	}
	if !strings.Contains(logs.String(), "service=default/evil") {
		t.Errorf("the log does not name the Service: %s", logs.String())
	}
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.11"))
	r.flush()
	r.becomes("192.0.2.13:6443", "[10.0.0.66:6443]")

	// So is what the monitor knows from elsewhere.
	r.l.SetAPIServers(reservedAre("192.0.2.13:6443"))
	r.flush()
	r.becomes("192.0.2.13:6443", "not a frontend")
	r.l.Handle([]watch.Event{{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: "evil"}}})
	r.l.SetAPIServers(apihealth.Addresses{})
	if got := len(r.l.Problems()); got != 0 {
		t.Errorf("%d problems, want none", got)
	}
}

// The API service's address is its own before the API has named it.
func TestAPIServiceReservesTheAddressOfInit(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.11:6443")
	r.l.SetAPIServers(reservedAre("192.0.2.11:6443"))
	svc := evil("10.96.0.1")
	svc.Spec.Ports[0].Port = 443
	r.tell(svc, slice("evil", 443, corev1.ProtocolTCP, "10.0.0.66"))
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
}

// An API server of this node is reached on loopback addresses too.
func TestAPIServiceReservesLoopbackOfThisNode(t *testing.T) {
	r := newRig(t)
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8", "192.0.2.11/24"))
	r.tell(kubernetes("192.0.2.11")...)
	svc := evil("192.0.2.99")
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 6443
	r.tell(svc, slice("evil", 6443, corev1.ProtocolTCP, "10.0.0.66"))
	r.syncAll()
	r.flush()
	s, err := r.f.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []bpf.FrontendKey{bpf.LoopbackKey(true, 6443, bpf.TCP), bpf.FrontendKeyOf(netip.MustParseAddrPort("192.0.2.11:6443"), bpf.TCP)} {
		if _, there := s.Frontends[k]; there {
			t.Errorf("%v is in the table", k)
		}
	}
	r.want("192.0.2.99:6443", "[10.0.0.66:6443]")
}
