package writer

import (
	"net/netip"

	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// What others may ask a Writer: none of it waits for a write.

// Status is what a Writer knows of its table.
type Status struct {
	Adopted   bool        // the first flush was carried out
	Ports     int         // that are wanted
	Out       []PortState // of them, those that are not as they should be, sorted
	Frontends int         // in the table, of all writers
	Backends  int         // likewise
	Room      nat.Capacity
	Flushes   uint64 // that wrote something
	Repairs   uint64 // times that the table was found changed by others, and repaired
	Reloads   uint64 // times that it was read as a whole

	ServiceRange []netip.Prefix // addresses of it that no Service has are refused

	Nodes    int   // addresses of other nodes at which node ports are served
	NodesErr error // why it is not all of them
}

// PortState is a port that is wanted, and what became of it.
type PortState struct {
	Key   services.PortKey
	Index uint32 // 0: it isn't in the table
	Full  bool   // for lack of capacity
	Err   string // why it isn't there, or isn't as it should be; empty: it is
}

func (w *Writer) state(key services.PortKey) PortState {
	p := w.ports[key]
	st := PortState{Key: key, Index: p.index}
	if p.err != nil {
		st.Full, st.Err = shortOf(p.err) != 0, p.err.Error()
	}
	return st
}

// Status tells how things are.
func (w *Writer) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := w.status
	st.Ports = len(w.ports)
	for _, key := range w.outOfTable() { // to sort all ports under the lock takes longer than a write
		st.Out = append(st.Out, w.state(key))
	}
	if n := w.nodes; n != nil {
		st.NodesErr = n.err
	}
	if w.planner != nil {
		st.Nodes = w.planner.Nodes()
		state := w.planner.State()
		st.ServiceRange, _ = state.ServiceRanges()
		st.Frontends, st.Room = len(state.Frontends), state.Capacity
		for _, set := range state.Sets {
			st.Backends += len(set)
		}
	}
	return st
}

// Ports are all that are wanted, in no order.
func (w *Writer) Ports() []PortState {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]PortState, 0, len(w.ports))
	for key := range w.ports {
		out = append(out, w.state(key))
	}
	return out
}

// Indexes are the service indexes of the ports that are in the table.
func (w *Writer) Indexes() map[uint32]services.PortKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[uint32]services.PortKey, len(w.ports))
	for key, p := range w.ports {
		if p.index != 0 {
			out[p.index] = key
		}
	}
	return out
}

// Full reports whether some Services are out for lack of capacity.
func (w *Writer) Full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.full != [shortParts]int{}
}

// Short says which parts of the table have no capacity left.
func (w *Writer) Short() (s Short) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, n := range w.full {
		if n > 0 {
			s |= 1 << i
		}
	}
	if w.ranges != nil {
		s |= shortOf(w.ranges.err)
	}
	if w.nodes != nil {
		s |= shortOf(w.nodes.err)
	}
	return s
}
