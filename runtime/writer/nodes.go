package writer

import (
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/runtime/services"
)

// nodes are the addresses of other nodes, as they should be marked in the table.
type nodes struct {
	addrs   []netip.Addr
	planned bool
	err     error // why they are not in the table
}

// replan has them planned again: the table was read again, or has capacity.
func (n *nodes) replan() {
	if n != nil {
		n.planned = false
	}
}

// SetNodes is Set with the addresses of other nodes, where frontends of
// bpf.NodePortKey are served: an address that becomes another node's may have been
// this one's, with frontends of its own. addrs is sorted, each once, and kept.
// Before the first call what the table has stays.
func (w *Writer) SetNodes(changes []services.Change, addrs []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(changes)
	if old := w.nodes; old != nil && slices.Equal(old.addrs, addrs) {
		return
	}
	w.nodes = &nodes{addrs: addrs}
}

// addsNodes reports whether addresses of nodes are to be marked that are not.
func (w *Writer) addsNodes() bool {
	return w.nodes != nil && !w.nodes.planned && w.planner.AddsNodes(w.nodes.addrs)
}

// planNodes plans the marks. Where they find no capacity, what the table has stays.
func (w *Writer) planNodes() {
	n := w.nodes
	if n == nil || n.planned {
		return
	}
	n.planned = true
	former := n.err
	n.err = w.planner.SetNodes(n.addrs)
	if n.err != nil && (former == nil || former.Error() != n.err.Error()) { // it is tried again whenever something goes
		w.cfg.Log.Error("node ports are not served at the addresses of all other nodes", "err", n.err)
	}
}
