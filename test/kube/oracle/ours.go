package oracle

import (
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
)

// Ours asks runtime/services about a world, as a pure function of each Service.
func Ours(w *World) Result {
	out := Result{}
	for _, svc := range w.Services {
		ports, _ := services.Ports(svc, w.slicesOf(nameOf(svc)), asKubeProxy(w.Node))
		addPorts(out, ports)
	}
	return out
}

// asKubeProxy is a node with the settings that have us do what kube-proxy does: cluster IPs are for all clients whose packets come.
func asKubeProxy(node services.Node) services.Node {
	node.ClusterIPsOutside = true
	return node
}

// ourTable is a services.Table that follows the world: what the running program has, stripped objects included.
type ourTable struct {
	table    *services.Table
	stripper services.Stripper
}

func newOurTable(node services.Node) *ourTable {
	return &ourTable{table: services.NewTable(asKubeProxy(node))}
}

// setNode tells the table of a change of the node.
func (o *ourTable) setNode(node services.Node) { o.table.SetNode(asKubeProxy(node)) }

// follow tells the table of a change. A nil object is one that there was not, or is no more.
func (o *ourTable) follow(c change) {
	switch {
	case c.newService != nil:
		o.table.SetService(strip(o, c.newService.DeepCopy()))
	case c.oldService != nil:
		o.table.DeleteService(nameOf(c.oldService))
	case c.newSlice != nil:
		o.table.SetSlice(strip(o, c.newSlice.DeepCopy()))
	case c.oldSlice != nil:
		o.table.DeleteSlice(nameOf(c.oldSlice))
	}
}

func strip[T any](o *ourTable, object T) T {
	stripped, err := o.stripper.Strip(object)
	if err != nil {
		panic(err) // it never returns one
	}
	return stripped.(T)
}

func (o *ourTable) result() Result {
	out := Result{}
	for _, ports := range o.table.All() {
		addPorts(out, ports)
	}
	return out
}

func addPorts(out Result, ports []services.Port) {
	for i := range ports {
		p := &ports[i]
		key := PortKey{p.Key.Service.Namespace, p.Key.Service.Name, p.Key.Name, p.Key.Proto.String(), p.Key.IPv6}
		out[key] = portOf(p)
	}
}

func portOf(p *services.Port) Port {
	out := Port{
		Frontends: make(map[Frontend]Reach, len(p.Frontends)),
		Affinity:  int(p.Affinity / time.Second),
		Serving:   texts(p.Serving),
	}
	if p.HealthCheckNodePort != 0 {
		out.Health = Health{int(p.HealthCheckNodePort), p.LocalReady}
	}
	anywhere := len(p.Backends) > 0
	cluster, local := choose(texts(p.Backends), anywhere), choose(texts(p.Local), anywhere)
	for i, k := range p.Frontends {
		r := Reach{Kind: p.Kinds[i], Inside: cluster}
		flags := p.Flags[k]
		if flags&bpf.FrontendLocalPolicy != 0 {
			r.Inside = local
		}
		switch {
		case flags&bpf.FrontendExternalLocal != 0 || loopback(k) && p.ExternalLocal:
			r.Outside = local
		case flags&bpf.FrontendExternal != 0 || loopback(k):
			r.Outside = cluster
		}
		if flags&bpf.FrontendSourceRange != 0 {
			r.Limited, r.Ranges = true, slices.Clone(p.SourceRanges)
			sortRanges(r.Ranges)
		}
		out.add(Frontend{k.AddrPort(), k.Proto.String()}, r)
	}
	return out
}

// loopback reports whether a frontend is out of reach for clients outside, so that what it would do for them is left open.
func loopback(k bpf.FrontendKey) bool {
	return k == bpf.LoopbackKey(k.Addr.Addr().Is4(), k.Port.Uint16(), k.Proto)
}

func texts(list []netip.AddrPort) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

func sortRanges(list []netip.Prefix) {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
}
