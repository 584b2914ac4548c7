package workloads

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// namespace is one that was visited.
type namespace struct {
	cookie uint64
	host   bool
	addrs  []netip.Addr
	pids   []int
}

// input is all that the desired table follows from.
type input struct {
	pods       []pod        // inOrder
	node       []netip.Addr // the first of each family is by which the node is known
	ranges     bool         // some Service has source ranges
	fallback   bool         // something else serves Services too, so pods may opt out
	programs   bool         // the programs can tell namespaces apart
	namespaces []namespace
	noCookie   bool // namespaces can't be named by us, so there are none
	// lastSeen are the namespaces that pods had when they were last seen.
	lastSeen map[types.NamespacedName]uint64
	// isOf reports whether one of some processes is the pod's.
	isOf func(pids []int, uid types.UID) bool
}

// named reports whether namespaces can be named, by the programs and by us.
func (in *input) named() bool { return in.programs && !in.noCookie }

// optsOut reports whether a pod's request is granted.
func (in *input) optsOut(p *pod) bool { return p.off() && !p.hostNetwork && in.fallback && in.named() }

// needsNamespaces reports whether anything depends on which there are.
func (in *input) needsNamespaces() bool {
	if !in.named() {
		return false
	}
	return in.ranges || slices.ContainsFunc(in.pods, func(p pod) bool { return in.optsOut(&p) })
}

// output is the desired table, and what is wrong.
type output struct {
	table    Table
	owner    map[uint64]*pod // of the entries that are pods'
	missing  []pod           // whose namespace isn't there; each has a problem too
	problems []Problem
}

// desired is pure but for isOf.
func desired(in *input) output {
	out := output{table: Table{Workloads: map[uint64]bpf.Workload{}}, owner: map[uint64]*pod{}}
	out.problems = ignored(in)
	if in.ranges && !in.programs {
		out.table.Workloads[0] = workload(firstOf(in.node, nil)) // all of the node is one client
	}
	if !in.needsNamespaces() {
		return out
	}
	if in.ranges {
		out.addUnknown(in)
	}
	for i := range in.pods {
		if p := &in.pods[i]; p.ownNamespace() && (in.ranges || in.optsOut(p)) {
			out.addPod(in, p)
		}
	}
	for _, w := range out.table.Workloads {
		if w.Flags&bpf.WorkloadOptedOut != 0 {
			out.table.Control |= bpf.ControlOptOut
		}
	}
	return out
}

// ignored says which annotations can't be followed.
func ignored(in *input) (list []Problem) {
	for i := range in.pods {
		p := &in.pods[i]
		switch {
		case p.annotation == "" || p.annotation == On:
		case !p.off():
			list = append(list, p.problem(BadAnnotation, "annotation %s is neither %q nor %q: ignored, the pod is served", Annotation, On, Off))
		case p.hostNetwork:
			list = append(list, p.problem(HostNetwork, "annotation %s: %q is ignored: a pod with hostNetwork shares the node's network namespace with all others", Annotation, Off))
		case !in.named():
			list = append(list, p.problem(NoCookies, "annotation %s: %q is ignored: this kernel does not tell which network namespace is which (docs/kernels.md: netns-cookie, so-netns-cookie)", Annotation, Off))
		case !in.fallback:
			list = append(list, p.problem(NothingElse, "annotation %s: %q is ignored: nothing else on this node serves Services, the pod would have none", Annotation, Off))
		}
	}
	return list
}

// addUnknown gives an entry to the host and to what may be no pod: by their own
// addresses, but by none that the API gives to a pod or the node.
func (out *output) addUnknown(in *input) {
	taken := map[netip.Addr]bool{}
	for _, a := range in.node {
		taken[a] = true
	}
	for i := range in.pods {
		taken[in.pods[i].addr4], taken[in.pods[i].addr6] = true, true
	}
	for _, ns := range in.namespaces {
		a4, a6 := firstOf(ns.addrs, taken)
		if ns.host {
			a4, a6 = firstOf(append(in.node[:len(in.node):len(in.node)], ns.addrs...), nil)
		}
		if a4.IsValid() || a6.IsValid() {
			out.table.Workloads[ns.cookie] = workload(a4, a6)
		}
	}
}

// addPod finds the namespace of a pod and gives it the pod's entry.
func (out *output) addPod(in *input, p *pod) {
	cookie, claims := in.find(p)
	if claims > 1 {
		out.problems = append(out.problems, p.problem(AddressConflict, "%d network namespaces have its address: it is not known which is the pod's", claims))
		return
	}
	if claims == 0 {
		var ok bool
		if cookie, ok = in.lastSeen[p.name]; !ok {
			out.missing = append(out.missing, *p)
			out.problems = append(out.problems, p.problem(NoNamespace, "no network namespace of this node has its address (yet)"))
			return
		}
	}
	w := workload(p.addr4, p.addr6)
	if in.optsOut(p) {
		w.Flags = bpf.WorkloadOptedOut
	}
	out.table.Workloads[cookie] = w
	out.owner[cookie] = p
}

// find returns the namespace of a pod, and how many claim to be it.
func (in *input) find(p *pod) (cookie uint64, claims int) {
	var list []*namespace
	for i := range in.namespaces {
		if ns := &in.namespaces[i]; !ns.host && slices.ContainsFunc(ns.addrs, p.has) {
			list = append(list, ns)
		}
	}
	if len(list) > 1 && in.isOf != nil {
		proven := slices.DeleteFunc(slices.Clone(list), func(ns *namespace) bool { return !in.isOf(ns.pids, p.uid) })
		if len(proven) > 0 {
			list = proven
		}
	}
	if len(list) == 0 {
		return 0, 0
	}
	return list[0].cookie, len(list)
}

// firstOf are the first addresses of each family that aren't taken.
func firstOf(addrs []netip.Addr, taken map[netip.Addr]bool) (a4, a6 netip.Addr) {
	for _, a := range addrs {
		switch {
		case taken[a]:
		case a.Is4() && !a4.IsValid():
			a4 = a
		case a.Is6() && !a6.IsValid():
			a6 = a
		}
	}
	return a4, a6
}

func workload(a4, a6 netip.Addr) (w bpf.Workload) {
	if a4.IsValid() {
		w.Addr4 = bpf.AddressOf(a4)
	}
	if a6.IsValid() {
		w.Addr6 = bpf.AddressOf(a6)
	}
	return w
}
