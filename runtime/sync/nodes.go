package sync

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// otherNodes are the nodes of the cluster, at whose addresses node ports are served for clients on this one.
type otherNodes struct {
	ips       map[string][]netip.Addr // of each Node object, as services.NodeIPs has them
	selected  map[string][]netip.Addr // of them, those that the table of Services has
	known     bool                    // which nodes there are; before, what the table has stays
	unwritten bool                    // the table of Services has others than the writer
}

func newOtherNodes() otherNodes {
	return otherNodes{ips: map[string][]netip.Addr{}, selected: map[string][]netip.Addr{}}
}

// observeOther takes a Node object. Most say what was known: a kubelet updates its Node's status every few minutes.
func (l *Loop) observeOther(ev *watch.Event) {
	o := &l.node.others
	if ev.Absent {
		for name := range o.ips {
			l.publish(NodeAddrs{Node: name})
		}
		o.ips = map[string][]netip.Addr{}
		l.serveAtNodes(false)
		l.selectNodes()
		l.nodesKnown()
		return
	}
	name := ev.Name.Name
	obj, _ := ev.Object.(*corev1.Node)
	if obj == nil {
		delete(o.ips, name)
		l.publish(NodeAddrs{Node: name})
	} else {
		l.serveAtNodes(true)
		ips := services.NodeIPs(obj)
		if slices.Equal(ips, o.ips[name]) {
			return
		}
		o.ips[name] = ips
		l.publish(NodeAddrs{Node: name, Addrs: ips})
	}
	l.selectNode(name)
	l.rangeChanged()
}

// serveAtNodes says whether node ports are served at other nodes' addresses.
func (l *Loop) serveAtNodes(yes bool) {
	if l.node.AtNodes != yes {
		l.node.AtNodes = yes
		l.apply(l.table.SetNode(l.node.Node))
	}
}

// selectNode tells the table at which addresses of a node its ports are served: not at the host's own, which have
// frontends of their own.
func (l *Loop) selectNode(name string) {
	addrs := slices.DeleteFunc(l.cfg.NodePorts.SelectNode(l.node.others.ips[name]), func(a netip.Addr) bool {
		_, ours := slices.BinarySearchFunc(l.node.hostIPs, a, netip.Addr.Compare)
		return ours
	})
	o := &l.node.others
	if slices.Equal(addrs, o.selected[name]) {
		return
	}
	if len(addrs) == 0 {
		delete(o.selected, name)
	} else {
		o.selected[name] = addrs
	}
	o.unwritten = o.known
	l.apply(l.table.SetNodeAddrs(name, addrs))
}

// selectNodes does so for all nodes.
func (l *Loop) selectNodes() {
	for _, name := range slices.Collect(maps.Keys(l.node.others.selected)) {
		l.selectNode(name)
	}
	for name := range l.node.others.ips {
		l.selectNode(name)
	}
}

// nodesKnown notes that all nodes have been heard of, or that none will be.
func (l *Loop) nodesKnown() {
	if !l.node.others.known {
		l.node.others.known, l.node.others.unwritten = true, true
		l.notify()
	}
}

// interfaces are the addresses of the host's own interfaces, for services.Node. A device with the address of the API
// service on it is a Service proxy's, which gave it all cluster IPs and may be gone.
func (l *Loop) interfaces() map[netip.Addr]string {
	n := &l.node
	proxies := map[string]bool{}
	for _, a := range l.apiAddrs() {
		if device, has := n.devices[a.Addr()]; has {
			proxies[device] = true
		}
	}
	out := make(map[netip.Addr]string, len(n.devices))
	for a, device := range n.devices {
		if !proxies[device] && !a.IsLoopback() {
			out[a] = device
		}
	}
	return out
}
