package running

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/standin"
)

// proxies are what serves the nodes of a bed: the names of the nodes, but for the first, are modes of kube-proxy.
var proxies = []string{here, "nftables", "iptables"}

// bed is a cluster of three nodes that firsthop and kube-proxy serve, one each. The same is done on all of them.
type bed struct {
	t       *testing.T
	f       *fixture // its node is firsthop's
	nodes   map[string]*cluster.Node
	proxy   map[string]*cluster.Process // kube-proxy
	places  []*place
	fences  []*prober
	results []string // for people
}

// place is where a client is: on a node, or in a pod of it.
type place struct {
	node, kind string
	*clients.Caller
	b *bed
}

func newBed(t *testing.T) *bed {
	c := cluster.New(t, cluster.Config{})
	for _, name := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
		if err := c.Hub.Sysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	serveRemote(t, c, 53, 80, 81, fencePort)
	f := &fixture{t: t, cluster: c, slices: map[string]bool{}}
	for family := range 2 {
		for _, pod := range pods[2:] {
			for _, port := range []uint16{53, 54} {
				echoUDP(t, c.Hub, netip.AddrPortFrom(f.podAddr(pod, family), port))
			}
		}
	}
	b := &bed{t: t, f: f, nodes: map[string]*cluster.Node{}, proxy: map[string]*cluster.Process{}}
	for _, name := range proxies {
		if name == here {
			f.node = newNode(t, c, here, ownZone)
			b.nodes[name] = f.node.Node
			f.node.init(c.Servers)
		} else {
			b.nodes[name] = c.AddNode(cluster.NodeConfig{Name: name, Zone: ownZone})
		}
		b.start(name)
		pod, err := b.nodes[name].AddPod("pod", b.nodes[name].Pod(1)...)
		if err != nil {
			t.Fatal(err)
		}
		b.fences = append(b.fences, newProber(t, pod))
		for kind, m := range map[string]clients.Machine{"node": b.nodes[name].Lab, "pod": pod} {
			b.places = append(b.places, &place{name, kind, clients.StartCaller(t, m, program(t, "client")), b})
		}
	}
	slices.SortFunc(b.places, func(x, y *place) int { return strings.Compare(x.kind, y.kind) })
	f.fence = newFence(t, c, b.fences[0])
	b.fence()
	return b
}

// start starts what serves a node.
func (b *bed) start(name string) {
	if name == here {
		b.f.node.start()
		return
	}
	b.proxy[name] = b.nodes[name].StartKubeProxy(name, "--iptables-min-sync-period=10ms") // nftables has a second, and no flag
}

// kill ends what serves the nodes, all of a sudden.
func (b *bed) kill() {
	b.f.node.run.Kill()
	for _, p := range b.proxy {
		p.Kill()
	}
}

// revive starts it again.
func (b *bed) revive() {
	for _, name := range proxies {
		b.start(name)
	}
	b.fence()
}

// fence waits until all nodes serve what was written before.
func (b *bed) fence() {
	b.t.Helper()
	target, backend, err := b.f.fence.raise(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range b.fences {
		b.f.fence.p = p
		b.f.fence.awaitAt(target, backend)
	}
}

// put writes a world, and waits until all nodes serve it.
func (b *bed) put(w *world) {
	b.t.Helper()
	w.put(b.f, b.f.cluster)
	b.fence()
}

// remove deletes the Service of a world.
func (b *bed) remove(w *world) {
	b.t.Helper()
	w.absent = true
	b.put(w)
	w.absent = false
	w.svc.Spec.ClusterIP, w.svc.Spec.ClusterIPs = "", nil // another one, next time
}

// but is what one kind of place shows instead, and why that is well.
type but struct{ where, want, why string }

// place of where: a node, a kind, or both as "here pod".
func (o but) is(p *place) bool {
	for word := range strings.FieldsSeq(o.where) {
		if word != p.node && word != p.kind && (word != "kube-proxy" || p.node == here) {
			return false
		}
	}
	return true
}

// see asks at every place, until it is answered as is wanted. kube-proxy takes half a minute where it misses a flow at first.
func (b *bed) see(what, want string, ask func(p *place) string, buts ...but) {
	b.t.Helper()
	b.compare(what, want, buts, func(p *place, want string) string {
		for deadline := time.Now().Add(patience); ; {
			got := ask(p)
			if isWanted(got, want) || time.Now().After(deadline) {
				return got
			}
		}
	})
}

// once asks at every place, a single time.
func (b *bed) once(what, want string, ask func(p *place) string, buts ...but) {
	b.t.Helper()
	b.compare(what, want, buts, func(p *place, _ string) string { return ask(p) })
}

func (b *bed) compare(what, want string, buts []but, ask func(p *place, want string) string) {
	b.t.Helper()
	got, wants := make([]string, len(b.places)), make([]string, len(b.places))
	var group sync.WaitGroup
	for i, p := range b.places {
		wants[i] = want
		for _, o := range buts {
			if o.is(p) {
				wants[i] = o.want
			}
		}
		group.Go(func() { got[i] = ask(p, wants[i]) })
	}
	group.Wait()
	line := what + ":"
	for i, p := range b.places {
		if !isWanted(got[i], wants[i]) {
			b.t.Errorf("%s: %s of %s: %q, want %q", what, p.kind, p.node, got[i], wants[i])
		}
		line += fmt.Sprintf(" | %s %s: %s", p.node, p.kind, got[i])
	}
	b.results = append(b.results, line)
}

// isWanted: a want may have several words that will do.
func isWanted(got, want string) bool { return slices.Contains(strings.Split(want, "|"), got) }

// How many milliseconds a datagram's answer may take, and a connection.
const answerTime, connectTime = 400, 2000

// said is an exchange in short: who answered, and from where if not from the address that was asked.
func (p *place) said(e clients.Exchange, asked netip.AddrPort) string {
	switch e.Error {
	case "":
	case "send EPERM", "send ECONNREFUSED", "recvfrom ECONNREFUSED": // kube-proxy refuses by ICMP; on the node itself, send may fail
		return refused
	default:
		return strings.TrimPrefix(e.Error, "recvfrom ")
	}
	r, err := standin.ParseReply([]byte(e.Reply))
	if err != nil {
		return err.Error()
	}
	who := p.b.f.podName(r.Local.String())
	if e.From != "" && asked.IsValid() && e.From != asked.String() {
		if from, err := netip.ParseAddrPort(e.From); err == nil {
			e.From = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
		}
		who += " from " + p.b.f.podName(e.From)
	}
	if e.Peer != "" && asked.IsValid() && e.Peer != asked.String() {
		who += ", peer " + e.Peer
	}
	return who
}

// done is how a call went.
func done(e clients.Exchange) string {
	if e.Error != "" {
		return e.Error
	}
	return "ok"
}

func (p *place) open(socket string, mode clients.Mode, family netip.AddrPort) {
	wait := answerTime
	if mode == clients.TCP {
		wait = connectTime
	}
	if e := p.Do(clients.Call{Do: clients.Open, Socket: socket, Mode: mode, Addr: family, Wait: wait}); e.Error != "" {
		p.b.t.Error(e.Error)
	}
}

// connect opens a socket and connects it.
func (p *place) connect(socket string, mode clients.Mode, to netip.AddrPort) string {
	p.open(socket, mode, to)
	return p.again(socket, to)
}

// again connects a socket that there is.
func (p *place) again(socket string, to netip.AddrPort) string {
	e := p.Do(clients.Call{Do: clients.Connect, Socket: socket, Addr: to})
	if e.Error == "" && e.Peer != to.String() {
		return "ok, peer " + e.Peer
	}
	return done(e)
}

// talk asks on a connected socket.
func (p *place) talk(socket string, asked netip.AddrPort) string {
	return p.said(p.Do(clients.Call{Do: clients.Talk, Socket: socket}), asked)
}

// send sends a datagram of a socket that is not connected.
func (p *place) send(socket string, to netip.AddrPort) string {
	return done(p.Do(clients.Call{Do: clients.SendTo, Socket: socket, Addr: to}))
}

// receive takes a datagram.
func (p *place) receive(socket string, asked netip.AddrPort) string {
	return p.said(p.Do(clients.Call{Do: clients.Receive, Socket: socket}), asked)
}

// sendReceive is both.
func (p *place) sendReceive(socket string, to netip.AddrPort) string {
	if sent := p.send(socket, to); sent != "ok" {
		return sent
	}
	return p.receive(socket, to)
}

// reach is what some new sockets come to, sorted.
func (p *place) reach(mode clients.Mode, to netip.AddrPort, count int) string {
	seen := map[string]bool{}
	for range count {
		what := p.connect("new", mode, to)
		if what == "ok" {
			what = p.talk("new", to)
		}
		seen[what] = true
	}
	p.Do(clients.Call{Do: clients.Close, Socket: "new"})
	var list []string
	for what := range seen {
		list = append(list, what)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// form is a kind of address that a client may have of a Service.
type form struct {
	name string
	of   func(ips []string, port int32) netip.AddrPort
}

// forms are IPv4, IPv6, and an IPv4 address that an IPv6 socket is used for.
var forms = []form{
	{"IPv4", func(ips []string, port int32) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(ips[0]), uint16(port))
	}},
	{"IPv6", func(ips []string, port int32) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(ips[1]), uint16(port))
	}},
	{"v4-mapped", func(ips []string, port int32) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(netip.MustParseAddr(ips[0]).As16()), uint16(port))
	}},
}

// udpWorld is a UDP Service, and TCP beside it.
func udpWorld(name string, endpoints ...endpoint) *world {
	w := newWorld(name)
	w.svc.Spec.Ports = []corev1.ServicePort{sp("dns", corev1.ProtocolUDP, 53, 53), sp("http", corev1.ProtocolTCP, 80, 80)}
	w.endpoints = endpoints
	return w
}

// vips are the cluster IPs.
func (w *world) vips() []string { return w.svc.Spec.ClusterIPs }

// scene is one story, of a world of its own.
type scene struct {
	name string
	play func(b *bed)
	long bool // it waits for things that time out
}

// TestScenesAsUnderKubeProxy plays scenes on nodes of firsthop and of kube-proxy, side by side: clients see the same, or
// what is written beside it.
func TestScenesAsUnderKubeProxy(t *testing.T) {
	b := newBed(t)
	for _, s := range slices.Concat(socketScenes, frontendScenes) {
		t.Run(s.name, func(t *testing.T) {
			if s.long && !long() {
				t.Skip("needs FIRSTHOP_TEST_LONG=1: TestCases and TestNodes have much of it, without kube-proxy")
			}
			outer := b.t
			b.t, b.f.t, b.f.fence.t, b.results = t, t, t, nil
			defer func() { b.t, b.f.t, b.f.fence.t = outer, outer, outer }()
			s.play(b)
			t.Log("what was seen:\n" + strings.Join(b.results, "\n"))
		})
	}
}

// deleteSlices removes a world's EndpointSlices, and nothing else.
func (b *bed) deleteSlices(w *world) {
	b.t.Helper()
	for name := range w.slices(b.f) {
		if err := b.f.cluster.Client.DiscoveryV1().EndpointSlices("default").Delete(b.t.Context(), name, metav1.DeleteOptions{}); err != nil {
			b.t.Fatal(err)
		}
		delete(b.f.slices, name)
	}
}
