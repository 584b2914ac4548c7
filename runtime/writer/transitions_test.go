package writer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/clients"
)

// No state in between two others refuses a client that both allow: whatever changes of a Service, of the node and of
// other nodes. One test checks every order in which a program may see the writes of each change, the other has
// programs and clients.

// The addresses of the worlds. Backends 1 and 2 are on this node, 3 on node2, 4 on node3.
const (
	clusterIP, clusterIP2 = "10.97.0.1", "10.97.0.2"
	balancerIP            = "203.0.113.10"
	externalIP            = "203.0.113.20"
	thisIP, node2, node3  = "198.18.0.1", "198.18.0.2", "198.18.0.3"
	backendIPs            = "192.0.2.%d"
	theClient             = "192.0.2.100"
)

// probes are what clients connect to: first those inside the cluster, by connect time, then those outside, by the packet path.
var probes = []string{
	clusterIP + ":80", clusterIP + ":81", clusterIP2 + ":80", balancerIP + ":80", externalIP + ":80",
	thisIP + ":30080", node2 + ":30080", node3 + ":30080", node2 + ":30081",
	outside + clusterIP + ":80", outside + clusterIP + ":81", outside + balancerIP + ":80", outside + externalIP + ":80",
	outside + thisIP + ":30080",
}

const outside = "from outside to "

// world is what a table is made of.
type world struct {
	web, other   *corev1.Service // nil: there is none
	backends     []int           // of web
	terminating  bool            // all of them are
	node         services.Node
	nodes        map[string][]netip.Addr
	reserved     services.Reserved
	backendPort  int32
	portName     string // of web's first port
	serviceRange bool
}

func newWorld(changes ...func(*world)) *world {
	one := func(ss ...string) (out []netip.Addr) {
		for _, s := range ss {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	w := &world{
		backends: []int{1, 2, 3, 4}, backendPort: 8080, portName: "http",
		node:  services.Node{Name: "here", NodePortAddrs: one(thisIP), Addrs: one(thisIP), AtNodes: true},
		nodes: map[string][]netip.Addr{"node2": one(node2), "node3": one(node3)},
		web:   serviceAt("web", clusterIP), other: serviceAt("other", clusterIP2),
	}
	w.web.Spec.Ports = append(w.web.Spec.Ports, corev1.ServicePort{Name: "second", Port: 81, Protocol: corev1.ProtocolTCP})
	for _, change := range changes {
		change(w)
	}
	return w
}

func serviceAt(name, ip string) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	svc.Spec.Type, svc.Spec.ClusterIP = corev1.ServiceTypeClusterIP, ip
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
	return svc
}

// What makes one world of another.
func nodePort(w *world) {
	w.web.Spec.Type, w.web.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
}
func balancer(w *world) {
	nodePort(w)
	w.web.Spec.Type = corev1.ServiceTypeLoadBalancer
	w.web.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancerIP}}
}
func external(w *world) { w.web.Spec.ExternalIPs = []string{externalIP} }
func externalLocal(w *world) {
	w.web.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}
func internalLocal(w *world) {
	w.web.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}
func clusterIPsOutside(w *world) { w.node.ClusterIPsOutside = true }
func nodePortRanges(w *world) {
	w.web.Annotations = map[string]string{services.NodePortRangesAnnotation: "true"}
}
func ranges(list ...string) func(*world) {
	return func(w *world) { w.web.Spec.LoadBalancerSourceRanges = list }
}
func affinity(seconds int32) func(*world) {
	return func(w *world) {
		w.web.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		w.web.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}
func onBackends(list ...int) func(*world) { return func(w *world) { w.backends = list } }

// worlds are all that are changed into each other.
func worlds() map[string]*world {
	w := map[string]*world{
		"ClusterIP":                       newWorld(),
		"NodePort":                        newWorld(nodePort),
		"NodePort Local":                  newWorld(nodePort, externalLocal),
		"NodePort Local, fewer backends":  newWorld(nodePort, externalLocal, onBackends(2, 4)),
		"another node port":               newWorld(nodePort, func(w *world) { w.web.Spec.Ports[0].NodePort = 30081 }),
		"LoadBalancer":                    newWorld(balancer),
		"LoadBalancer Local":              newWorld(balancer, externalLocal),
		"LoadBalancer Local everywhere":   newWorld(balancer, external, externalLocal, internalLocal),
		"source ranges":                   newWorld(balancer, ranges("192.0.2.0/24")),
		"narrower source ranges":          newWorld(balancer, ranges("192.0.2.100/32", "198.51.100.0/24")),
		"source ranges for everybody":     newWorld(balancer, ranges("0.0.0.0/0"), affinity(60)),
		"source ranges for others":        newWorld(balancer, ranges("198.51.100.0/24")),
		"source ranges, Local":            newWorld(balancer, ranges("192.0.2.0/25"), externalLocal),
		"source ranges everywhere":        newWorld(balancer, external, nodePortRanges, ranges("192.0.2.0/24")),
		"source ranges everywhere, Local": newWorld(balancer, external, nodePortRanges, externalLocal, ranges("192.0.2.64/26", "10.0.0.0/8")),
		"external IP, Local":              newWorld(external, externalLocal),
		"external IP, none here":          newWorld(external, externalLocal, onBackends(3, 4)),
		"cluster IPs outside":             newWorld(balancer, clusterIPsOutside, internalLocal, externalLocal),
		"cluster IPs outside, all":        newWorld(balancer, clusterIPsOutside, external),
		"cluster IPs outside, none here":  newWorld(clusterIPsOutside, internalLocal, onBackends(4)),
		"cluster IP is an external IP":    newWorld(internalLocal, func(w *world) { w.web.Spec.ExternalIPs = []string{clusterIP} }),
		"the same, external Local":        newWorld(externalLocal, ranges("192.0.2.0/24"), func(w *world) { w.web.Spec.ExternalIPs = []string{clusterIP} }),
		"external IP is this node's":      newWorld(nodePort, external, func(w *world) { w.node.Addrs = append(w.node.Addrs, netip.MustParseAddr(externalIP)) }),
		"internal Local":                  newWorld(internalLocal),
		"internal Local, fewer backends":  newWorld(internalLocal, nodePort, onBackends(1)),
		"internal Local, none here":       newWorld(internalLocal, nodePort, onBackends(3)),
		"affinity":                        newWorld(nodePort, affinity(60)),
		"longer affinity, fewer backends": newWorld(external, affinity(120), onBackends(1, 3)),
		"external IP":                     newWorld(external),
		"external IP of the other":        newWorld(nodePort, func(w *world) { w.other.Spec.ExternalIPs = []string{externalIP, balancerIP} }),
		"external IP is a cluster IP":     newWorld(external, func(w *world) { w.other.Spec.ClusterIP = externalIP; w.other.Spec.Ports[0].Port = 443 }),
		"external IP is a node's":         newWorld(nodePort, func(w *world) { w.web.Spec.ExternalIPs = []string{node2} }),
		"one port":                        newWorld(nodePort, func(w *world) { w.web.Spec.Ports = w.web.Spec.Ports[:1] }),
		"ports swapped": newWorld(nodePort, func(w *world) {
			w.web.Spec.Ports[0].Port, w.web.Spec.Ports[1].Port = 81, 80
		}),
		"port renamed":         newWorld(balancer, func(w *world) { w.web.Spec.Ports[0].Name, w.portName = "renamed", "renamed" }),
		"other target port":    newWorld(nodePort, func(w *world) { w.backendPort = 8081 }),
		"terminating backends": newWorld(nodePort, internalLocal, func(w *world) { w.terminating = true }),
		"node2's address is here": newWorld(nodePort, func(w *world) {
			w.node.NodePortAddrs = append(w.node.NodePortAddrs, netip.MustParseAddr(node2))
			w.nodes["node2"] = nil
		}),
		"node2 has another address": newWorld(nodePort, func(w *world) { w.nodes["node2"], w.nodes["node4"] = nil, w.nodes["node2"] }),
		"node2 is gone":             newWorld(nodePort, externalLocal, func(w *world) { w.nodes["node2"] = nil }),
		"an API server at node3": newWorld(nodePort, func(w *world) {
			w.reserved.Servers = []netip.AddrPort{netip.MustParseAddrPort(node3 + ":30080")}
		}),
		"left to the host": newWorld(nodePort, func(w *world) {
			w.node.Interfaces = map[netip.Addr]string{netip.MustParseAddr(clusterIP): "nodelocaldns"}
		}),
		"the Service is gone":   newWorld(func(w *world) { w.web = nil }),
		"it is another proxy's": newWorld(func(w *world) { w.web.Labels = map[string]string{services.LabelProxyName: "x"} }),
		"recreated":             newWorld(balancer, func(w *world) { w.web.CreationTimestamp = metav1.Unix(5, 0); w.web.UID = "2" }),
	}
	for _, of := range w {
		of.serviceRange = of.web != nil && of.web.Labels == nil
	}
	return w
}

func (w *world) slices() (out []*discoveryv1.EndpointSlice) {
	second, port := "second", w.backendPort
	sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &w.portName, Port: &port}, {Name: &second, Port: &port}}}
	for _, i := range w.backends {
		node := []string{"here", "here", "node2", "node3"}[i-1]
		ep := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf(backendIPs, i)}, NodeName: &node}
		if w.terminating {
			ep.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		}
		sl.Endpoints = append(sl.Endpoints, ep)
	}
	other := sl.DeepCopy()
	other.Name, other.Labels, other.Ports[0].Name = "other", map[string]string{discoveryv1.LabelServiceName: "other"}, new("http")
	other.Endpoints = other.Endpoints[:1]
	return []*discoveryv1.EndpointSlice{sl, other}
}

// stage is where one world follows another.
type stage struct {
	t     testing.TB
	w     *Writer
	table *services.Table
	flush func()
}

func newStage(t testing.TB, w *Writer, flush func()) *stage {
	return &stage{t: t, w: w, table: services.NewTable(newWorld().node), flush: flush}
}

// show makes a world the present one, in one step.
func (s *stage) show(w *world) {
	var all []services.Change
	for i, svc := range []*corev1.Service{w.web, w.other} {
		if svc == nil {
			all = append(all, s.table.DeleteService(types.NamespacedName{Namespace: "default", Name: []string{"web", "other"}[i]})...)
			continue
		}
		all = append(all, s.table.SetService(svc)...)
	}
	for _, sl := range w.slices() {
		all = append(all, s.table.SetSlice(sl)...)
	}
	all = append(all, s.table.SetNode(w.node)...)
	for _, name := range []string{"node2", "node3", "node4"} {
		all = append(all, s.table.SetNodeAddrs(name, w.nodes[name])...)
	}
	all = append(all, s.table.SetReserved(w.reserved)...)
	s.w.SetNodes(all, s.table.NodeAddrs())
	var others []netip.Prefix
	if !w.serviceRange {
		others = []netip.Prefix{netip.MustParsePrefix(clusterIP + "/32")}
	}
	s.w.SetServiceRange([]netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")}, others)
	s.flush()
}

// tracedFake remembers all states of a table, and where it was waited for programs.
type tracedFake struct {
	*lockedFake
	mu     sync.Mutex
	states []*nat.State
	graces map[int]bool // before which state
}

func newTracedFake(f *lockedFake) *tracedFake {
	tf := &tracedFake{lockedFake: f}
	tf.begin()
	f.Observe = func(s *nat.State) {
		tf.mu.Lock()
		defer tf.mu.Unlock()
		tf.states = append(tf.states, copyOf(s))
	}
	return tf
}

// copyOf is deep enough for what a Fake changes.
func copyOf(s *nat.State) *nat.State {
	c := &nat.State{Frontends: maps.Clone(s.Frontends), ServiceStates: maps.Clone(s.ServiceStates), SourceRanges: maps.Clone(s.SourceRanges)}
	c.Sets = make(map[uint32]map[uint32]bpf.Backend, len(s.Sets))
	for id, set := range s.Sets {
		c.Sets[id] = maps.Clone(set)
	}
	return c
}

func (f *tracedFake) Synchronize() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.graces[len(f.states)] = true
	return nil
}

// begin forgets all states but the present one.
func (f *tracedFake) begin() {
	s, _ := f.lockedFake.Read()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states, f.graces = []*nat.State{s}, map[int]bool{}
}

// check says what could become of a connect to an address, other than that it is translated: a program may begin in any
// state, and each of its lookups may find the same state as the one before or a later one, up to where the writer has
// waited for it.
func (f *tracedFake) check(probe string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for begin := range f.states {
		end := begin + 1
		for end < len(f.states) && !f.graces[end] {
			end++
		}
		if why := checkProbe(f.states[begin:end], probe); why != "" {
			return fmt.Sprintf("beginning in state %d of %d: %s", begin, len(f.states), why)
		}
	}
	return ""
}

func checkProbe(states []*nat.State, probe string) string {
	if addr, yes := strings.CutPrefix(probe, outside); yes {
		return checkRunOutside(states, tcp(addr))
	}
	return checkRun(states, tcp(probe))
}

// checkRunOutside is checkRun for the packet path.
func checkRunOutside(states []*nat.State, key bpf.FrontendKey) string {
	for at, s := range states {
		fe, there := s.Frontends[key]
		if !there || fe.Flags&bpf.FrontendExternal == 0 {
			return fmt.Sprintf("not for clients outside at %d", at)
		}
		limited := fe.Flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0
		if why := checkService(states, at, fe, limited, fe.Flags&bpf.FrontendExternalLocal != 0); why != "" {
			return why
		}
	}
	return ""
}

func checkRun(states []*nat.State, key bpf.FrontendKey) string {
	// find gives the value of a key in each state from the first on; the program misses it at the first where it isn't.
	type found struct {
		at int
		fe bpf.Frontend
	}
	var all []found
	find := func(from int, k bpf.FrontendKey) (missAt int) {
		missAt = -1
		for i := from; i < len(states); i++ {
			if fe, there := states[i].Frontends[k]; there {
				if !slices.ContainsFunc(all, func(x found) bool { return x.fe == fe && x.at <= i }) {
					all = append(all, found{i, fe})
				}
			} else if missAt < 0 {
				missAt = i
			}
		}
		return missAt
	}
	if at := find(0, key); at >= 0 {
		for i := at; i < len(states); i++ {
			if _, vip := states[i].Frontends[bpf.FrontendKey{Addr: key.Addr}]; vip {
				return fmt.Sprintf("missed at %d, refused for the VIP's mark at %d", at, i)
			}
			_, marked := states[i].Frontends[bpf.NodeKeyOf(key.Addr.Addr())]
			if !marked {
				return fmt.Sprintf("missed at %d, no node's address at %d", at, i)
			}
		}
		if miss := find(at, bpf.NodePortKey(true, key.Port.Uint16(), key.Proto)); miss >= 0 {
			return fmt.Sprintf("missed at %d, no node port at %d", at, miss)
		}
	}
	for _, x := range all {
		if why := checkService(states, x.at, x.fe, x.fe.Flags&bpf.FrontendSourceRange != 0, x.fe.Flags&bpf.FrontendLocalPolicy != 0); why != "" {
			return why
		}
	}
	return ""
}

// checkService checks what a program looks up after it has found a frontend in a state.
func checkService(states []*nat.State, at int, fe bpf.Frontend, limited, local bool) string {
	for i := at; i < len(states); i++ {
		s := states[i]
		if limited && !allowed(s, fe.Index) {
			return fmt.Sprintf("index %d found at %d, dropped for the source ranges at %d", fe.Index, at, i)
		}
		w := s.ServiceStates[bpf.ServiceStateAt(fe.Index, local)]
		if w.Count() == 0 {
			return fmt.Sprintf("index %d (flags %#x) found at %d, has no backend at %d", fe.Index, uint32(fe.Flags), at, i)
		}
		for j := i; j < len(states); j++ {
			for slot := range w.Count() {
				if _, there := states[j].Sets[w.Set()][slot]; !there {
					return fmt.Sprintf("set %d of index %d, read at %d, lacks slot %d at %d", w.Set(), fe.Index, i, slot, j)
				}
			}
		}
	}
	return ""
}

// allowed does what the programs do with source ranges.
func allowed(s *nat.State, index uint32) bool {
	for bits := range 33 {
		if s.SourceRanges[bpf.SourceRangeKeyOf(index, netip.PrefixFrom(netip.MustParseAddr(theClient), bits))] {
			return true
		}
	}
	return false
}

// serves are the probes that a table at rest serves.
func serves(s *nat.State) map[string]bool {
	out := map[string]bool{}
	for _, p := range probes {
		if checkProbe([]*nat.State{s}, p) == "" {
			out[p] = true
		}
	}
	return out
}

func TestTransitionsRefuseNoAllowedClient(t *testing.T) {
	r := newRig(t, nat.NewFake(8192))
	f := newTracedFake(r.f)
	r.w.SetStore(f)
	s := newStage(t, r.w, func() { r.flush(); r.settle() })
	all := worlds()
	names := slices.Sorted(maps.Keys(all))
	served := map[string]map[string]bool{}
	for _, name := range names {
		s.show(all[name])
		state, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		served[name] = serves(state)
	}
	checked := 0
	for _, from := range names {
		for _, to := range names {
			s.show(all[from])
			f.begin()
			s.show(all[to])
			for p := range served[from] {
				if !served[to][p] {
					continue
				}
				checked++
				if why := f.check(p); why != "" {
					t.Errorf("from %q to %q: %s: %s", from, to, p, why)
				}
			}
		}
	}
	if st := r.w.Status(); len(st.Out) > 0 || st.Repairs > 0 {
		t.Errorf("%d are out, %d repairs: %+v", len(st.Out), st.Repairs, st.Out)
	}
	t.Logf("%d worlds, %d clients of two", len(names), checked)
}

// Several changes in a row: what one has replaced is still there, or is being removed, when the next is written.
func TestTransitionsInARowRefuseNoAllowedClient(t *testing.T) {
	r := newRig(t, nat.NewFake(8192))
	f := newTracedFake(r.f)
	r.w.SetStore(f)
	r.w.cfg.Notify = nil
	s := newStage(t, r.w, func() {
		if err := r.w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	all := worlds()
	names := slices.Sorted(maps.Keys(all))
	served := map[string]map[string]bool{}
	rest := func() *nat.State {
		r.flush()
		r.settle()
		state, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	for _, name := range names {
		s.show(all[name])
		served[name] = serves(rest())
	}
	random := rand.New(rand.NewPCG(7, 7))
	for range 400 {
		row := []string{names[random.IntN(len(names))]}
		s.show(all[row[0]])
		rest()
		f.begin()
		for range 4 {
			row = append(row, names[random.IntN(len(names))])
			s.show(all[row[len(row)-1]])
		}
		rest()
		for _, p := range probes {
			if slices.ContainsFunc(row, func(name string) bool { return !served[name][p] }) {
				continue
			}
			if why := f.check(p); why != "" {
				t.Errorf("%q: %s: %s", row, p, why)
			}
		}
	}
}

// Clients connect in a loop, by real programs, while one world becomes another and that the former one again.
func TestTransitionsRefuseNoAllowedClientUnderLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	client := clients.Build(t)
	c := newCrowd(t)
	c.echoes("own", "192.0.2", 4)
	c.echoesAt("again", "192.0.2", 4, 8081)
	c.attach()
	var netns uint64
	if err := c.lab.Do(func() (err error) { netns, err = natinit.NetnsCookie(); return err }); err != nil {
		t.Skip("source ranges need the cookies of network namespaces: ", err)
	}
	if err := c.maps.Map(bpf.MapWorkload).Put(netns, bpf.Workload{Addr4: bpf.AddressOf(netip.MustParseAddr(theClient))}); err != nil {
		t.Fatal(err)
	}
	s := newStage(t, c.w, c.flush)
	all := worlds()
	for _, row := range [][2]string{
		{"ClusterIP", "internal Local"},
		{"internal Local", "LoadBalancer Local everywhere"},
		{"NodePort", "NodePort Local"},
		{"NodePort Local", "LoadBalancer Local"},
		{"LoadBalancer", "LoadBalancer Local"},
		{"LoadBalancer", "source ranges"},
		{"source ranges", "narrower source ranges"},
		{"narrower source ranges", "source ranges, Local"},
		{"source ranges", "source ranges for everybody"},
		{"NodePort", "affinity"},
		{"affinity", "longer affinity, fewer backends"},
		{"NodePort", "another node port"},
		{"NodePort", "one port"},
		{"NodePort", "ports swapped"},
		{"LoadBalancer", "port renamed"},
		{"NodePort", "other target port"},
		{"ClusterIP", "NodePort"},
		{"NodePort", "LoadBalancer"},
		{"ClusterIP", "LoadBalancer Local everywhere"},
		{"ClusterIP", "external IP"},
		{"external IP", "external IP of the other"},
		{"external IP", "external IP is a cluster IP"},
		{"NodePort", "node2's address is here"},
		{"NodePort", "node2 has another address"},
		{"NodePort", "an API server at node3"},
		{"internal Local", "terminating backends"},
		{"ClusterIP", "recreated"},
		{"NodePort", "left to the host"},
	} {
		t.Run(row[0]+" and "+row[1], func(t *testing.T) {
			s.t, c.t = t, t
			var both []map[string]bool
			for _, name := range row {
				s.show(all[name])
				state, err := c.store.Read()
				if err != nil {
					t.Fatal(err)
				}
				both = append(both, serves(state))
			}
			var hammers []*clients.Hammer
			for _, p := range probes {
				if both[0][p] && both[1][p] && !strings.HasPrefix(p, outside) {
					hammers = append(hammers, clients.StartHammer(t, c.lab, client, clients.HammerConfig{Addr: p, Workers: 2, Do: clients.Echo}))
				}
			}
			if len(hammers) == 0 {
				t.Fatal("no client is allowed in both")
			}
			n := 0
			for end := time.Now().Add(400 * time.Millisecond); n < 20 || time.Now().Before(end); n++ {
				s.show(all[row[n%2]])
			}
			for _, h := range hammers {
				if r := h.Stop(); len(r.Failures) > 0 || r.Connects == 0 {
					t.Errorf("%d connects, failures: %v", r.Connects, r.Failures)
				}
			}
			t.Logf("%d changes, %d clients", n, len(hammers))
		})
	}
}
