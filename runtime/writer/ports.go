package writer

import "github.com/firsthop/firsthop/runtime/services"

// PortState is a port that is wanted, and what became of it.
type PortState struct {
	Key   services.PortKey
	Index uint32 // 0: it isn't in the table
	Full  bool   // for lack of room
	Err   string // why it isn't there, or isn't as it should be; empty: it is
}

// Ports are all that are wanted, in no order.
func (w *Writer) Ports() []PortState {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]PortState, 0, len(w.ports))
	for key, p := range w.ports {
		st := PortState{Key: key, Index: p.index, Full: isFull(p.err)}
		if p.err != nil {
			st.Err = p.err.Error()
		}
		out = append(out, st)
	}
	return out
}
