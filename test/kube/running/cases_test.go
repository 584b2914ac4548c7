package running

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/kube/running/probe"
	"github.com/firsthop/firsthop/test/lab"
)

// fixture is the cluster that cases are replayed on.
type fixture struct {
	t       testing.TB
	cluster *cluster.Cluster
	node    *node
	from    map[string]*prober // "pod", "pod2": pods that are no endpoints; "p1": one that is; "node"
	fence   *fence
	slices  map[string]bool // that the API holds
}

// What attempts come to when no backend is reached. An address that nobody serves has no route beyond the hub.
const (
	refused  = "refused"
	dropped  = "dropped"
	unserved = "unserved"
)

var outcomes = map[string]string{
	"connect ECONNREFUSED": refused, "send ECONNREFUSED": refused, "recv ECONNREFUSED": refused, // the latter by ICMP, as with kube-proxy
	"connect EHOSTUNREACH": dropped, "send EHOSTUNREACH": dropped,
	"connect ENETUNREACH": unserved, "send ENETUNREACH": unserved,
	"recv timeout": unserved, // an unconnected UDP socket doesn't hear of a port or net that is unreachable: udp(7)
}

// look is what clients of a kind shall see at a frontend, in each family.
type look struct {
	from  string
	proto probe.Proto
	to    string // "cluster:80", "nodeport", "loopback", "external:80", "lb:80"
	want  string // the backends that many attempts reach, sorted, or one of the outcomes
}

// step is a change of the world, and what is seen after it.
type step struct {
	change func(w *world)
	looks  []look
}

func tcp(from, to, want string) look { return look{from, probe.TCP, to, want} }
func udp(from, to, want string) look { return look{from, probe.UDP, to, want} }

type row struct {
	name  string
	steps []step
}

// clientPods are the pods of the node, all of which have clients.
var clientPods = []string{"p1", "p2", "pod", "pod2"}

// newFixture makes a node that serves, with more flags for init and run.
func newFixture(t *testing.T, flags ...string) *fixture {
	c := cluster.New(t, cluster.Config{})
	// The hub says of each packet at once that there is no route for it.
	for _, name := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
		if err := c.Hub.Sysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	serveRemote(t, c, 80, 81, 843, 853, fencePort)
	f := &fixture{t: t, cluster: c, from: map[string]*prober{}, slices: map[string]bool{}}
	f.node = newNode(t, c, here, ownZone)
	for i, name := range clientPods {
		pod, err := f.node.AddPod(name, f.node.Pod(i+1)...)
		if err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			for _, port := range []uint16{80, 81, 843, 853} {
				echoTCP(t, pod, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
			}
			for family := range 2 {
				echoUDP(t, pod, netip.AddrPortFrom(f.node.Pod(i + 1)[family], 53))
			}
		}
		f.from[name] = newProber(t, pod)
	}
	for family := range 2 {
		echoUDP(t, c.Hub, netip.AddrPortFrom(f.podAddr("p3", family), 53))
	}
	f.from["node"] = newProber(t, f.node.Lab)
	f.fence = newFence(t, c, f.from["pod"])
	f.node.init(c.Servers, flags...)
	f.node.start(flags...)
	f.fence.await()
	return f
}

func TestCases(t *testing.T) {
	f := newFixture(t)
	for i, r := range rows() {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(fmt.Sprintf("case-%d", i))
			for n, s := range r.steps {
				s.change(w)
				f.place(w, i+1)
				w.put(f, f.cluster)
				f.fence.await()
				for _, l := range s.looks {
					for family := range 2 {
						f.see(t, n, w, l, family)
					}
				}
			}
		})
	}
	t.Run("affinity", func(t *testing.T) { f.affinity(t) })
	t.Run("source ranges", func(t *testing.T) { f.sourceRanges(t) })
	t.Run("UDP clients", func(t *testing.T) { f.udpClients(t) })
	t.Run("addresses of node ports", func(t *testing.T) { f.nodePortAddresses(t) })
	t.Run("stops", func(t *testing.T) { f.node.stop() })
}

// What needs the cookies of network namespaces goes on where only programs know them, as from Linux 5.7 to 5.13.
func TestCasesWithoutTheCookiesSocketOption(t *testing.T) {
	forbid := "--forbid-feature=so-netns-cookie"
	f := newFixture(t, forbid)
	t.Run("source ranges", func(t *testing.T) { f.sourceRanges(t) })
	w := newWorld("everywhere")
	everywhere(w)
	w.endpoints = ep("p3")
	f.place(w, 1)
	w.put(f, f.cluster)
	f.fence.await()
	for family := range 2 {
		for _, l := range all("p3:80") { // on loopback, too
			f.see(t, 0, w, l, family)
		}
	}
	if n := lab.AttachedToBind(t, f.node.Cgroup); n != 1 {
		t.Errorf("%d programs tell the runtime cookies, want one", n)
	}
	var again struct {
		Hooks []struct{ Hook, Change string }
	}
	out, code := f.node.command("init", "--service-ips="+vip, "--endpoints="+f.cluster.Servers[0].Address.String(), forbid, "-o", "json")
	if err := json.Unmarshal([]byte(out), &again); err != nil || code != 0 || len(again.Hooks) == 0 {
		t.Fatalf("init beside the runtime: exit code %d, %v\n%s", code, err, out)
	}
	for _, h := range again.Hooks {
		if h.Change != "kept" {
			t.Errorf("init and run load different programs: %s is %s", h.Hook, h.Change)
		}
	}
	f.node.run.Kill()
	eventually(t, "the killed runtime's program goes", func() string {
		if n := lab.AttachedToBind(t, f.node.Cgroup); n != 0 {
			return fmt.Sprintf("%d are attached", n)
		}
		return ""
	})
}

// place gives the Service of a case addresses that no other case has.
func (f *fixture) place(w *world, number int) {
	if len(w.svc.Spec.ExternalIPs) > 0 {
		w.svc.Spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", number), fmt.Sprintf("fd00:51::%d", number)}
	}
	if w.svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		mode := corev1.LoadBalancerIPModeVIP
		if in := w.svc.Status.LoadBalancer.Ingress; len(in) > 0 && in[0].IPMode != nil {
			mode = *in[0].IPMode
		}
		w.svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
			{IP: fmt.Sprintf("203.0.113.%d", number), IPMode: &mode}, {IP: fmt.Sprintf("fd00:113::%d", number), IPMode: &mode},
		}
	}
}

// target is an address that a case names.
func (f *fixture) target(w *world, to string, family int) string {
	kind, port, _ := strings.Cut(to, ":")
	host := ""
	switch kind {
	case "cluster":
		host = w.svc.Spec.ClusterIPs[family]
	case "external":
		host = w.svc.Spec.ExternalIPs[family]
	case "lb":
		host = w.svc.Status.LoadBalancer.Ingress[family].IP
	case "nodeport":
		host = f.node.IPs[family].String()
	case "loopback":
		host = []string{"127.0.0.1", "::1"}[family]
	default:
		panic("no address " + to)
	}
	if port == "" {
		port = fmt.Sprint(w.svc.Spec.Ports[0].NodePort)
	}
	return net.JoinHostPort(host, port)
}

// tries is how many attempts show all backends: of six, one stays unseen once in 10^11.
const tries = 140

func (f *fixture) see(t *testing.T, step int, w *world, l look, family int) {
	t.Helper()
	target := ""
	if strings.Contains(w.svc.Spec.ClusterIP, ":") { // the API server may have it so
		t.Fatal("the first family is IPv6")
	}
	if host := net4(l.to); host != "" {
		target = host
	} else {
		target = f.target(w, l.to, family)
	}
	count := tries
	if !strings.Contains(l.want, " ") {
		count = 20
	}
	if l.want == unserved {
		count = 2
	}
	got := f.reach(l.from, l.proto, target, count)
	if got != l.want {
		t.Errorf("step %d: %s from %s to %s (%s) reaches %q, want %q", step, l.proto, l.from, l.to, target, got, l.want)
	}
}

// net4 is for what is given as an address.
func net4(to string) string {
	if a, err := netip.ParseAddrPort(to); err == nil {
		return a.String()
	}
	return ""
}

// reach is what attempts come to: all that was reached, or what else happened, sorted.
func (f *fixture) reach(from string, proto probe.Proto, target string, count int) string {
	seen := map[string]bool{}
	for _, r := range f.from[from].ask(proto, target, count) {
		what := f.podName(r.Server)
		if r.Error != "" {
			if what = outcomes[r.Error]; what == "" {
				what = r.Error
			}
		}
		seen[what] = true
	}
	var list []string
	for what := range seen {
		list = append(list, what)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// affinity: clients are network namespaces; each stays with a backend over all frontends of a port.
func (f *fixture) affinity(t *testing.T) {
	w := newWorld("sticky")
	w.svc.Spec.Type = corev1.ServiceTypeNodePort
	w.svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	w.svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(2))}}
	w.endpoints = ep(pods...)
	w.put(f, f.cluster)
	f.fence.await()
	for family := range 2 {
		of := map[string]string{}
		for _, from := range []string{"pod", "pod2", "node"} {
			for _, to := range []string{"cluster:80", "nodeport"} {
				got := f.reach(from, probe.TCP, f.target(w, to, family), 20)
				if of[from] == "" {
					of[from] = got
				}
				if strings.Contains(got, " ") || of[from] != got {
					t.Errorf("%s reaches %q at %s, and %q before", from, got, to, of[from])
				}
			}
		}
		// One that is no longer usable is left; the others stay where they are.
		left, _, _ := strings.Cut(of["pod"], ":")
		w.endpoints = slices.DeleteFunc(w.endpoints, func(e endpoint) bool { return e.pod == left })
		w.put(f, f.cluster)
		f.fence.await()
		got := f.reach("pod", probe.TCP, f.target(w, "cluster:80", family), 20)
		if strings.Contains(got, " ") || got == of["pod"] {
			t.Errorf("after %s went, pod reaches %q", of["pod"], got)
		}
		// With a timeout of 2 s, clients choose anew.
		seen := map[string]bool{}
		eventually(t, "an affinity ends", func() string {
			seen[f.reach("pod2", probe.TCP, f.target(w, "cluster:80", family), 1)] = true
			if len(seen) > 1 {
				return ""
			}
			time.Sleep(3200 * time.Millisecond) // no condition: nothing may be asked while the time runs
			return fmt.Sprintf("pod2 still reaches %v", seen)
		})
	}
}

// sourceRanges: load balancer addresses allow the clients of ranges only, by the addresses of their pod.
func (f *fixture) sourceRanges(t *testing.T) {
	w := newWorld("limited")
	everywhere(w)
	allowed := f.node.Pod(slices.Index(clientPods, "pod") + 1)
	w.svc.Spec.LoadBalancerSourceRanges = []string{" " + allowed[0].String() + "/32", allowed[1].String() + "/128 "}
	w.endpoints = ep("p3")
	f.place(w, 200)
	w.put(f, f.cluster)
	f.fence.await()
	for family := range 2 {
		for _, l := range []look{tcp("pod", "lb:80", "p3:80"), tcp("pod2", "lb:80", dropped), tcp("node", "lb:80", dropped)} {
			target := f.target(w, l.to, family)
			// Who has which address is found out when the first Service asks for it.
			eventually(t, "wait for who has which address", func() string {
				if got := f.reach(l.from, l.proto, target, 3); got != l.want {
					return fmt.Sprintf("%s at %s reaches %q, want %q", l.from, target, got, l.want)
				}
				return ""
			})
		}
		for _, from := range []string{"pod", "pod2", "node"} {
			for _, to := range []string{"cluster:80", "nodeport", "external:80"} {
				f.see(t, 0, w, tcp(from, to, "p3:80"), family)
			}
		}
		f.see(t, 0, w, tcp("pod2", "lb:80", dropped), family)
	}
	w.svc.Spec.LoadBalancerSourceRanges = nil
	w.put(f, f.cluster)
	f.fence.await()
	for family := range 2 {
		f.see(t, 1, w, tcp("pod2", "lb:80", "p3:80"), family)
	}
}
