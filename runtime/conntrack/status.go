package conntrack

import (
	"maps"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// Kind is what flows are counted by.
type Kind struct {
	Proto bpf.Proto
	State State
}

// Status is what a Collector found and did.
type Status struct {
	// As of the last pass.
	Entries  int          // of the map: two for a flow, three or four where its backend is elsewhere
	Capacity int          // of the map
	Flows    map[Kind]int // of clients; those of State Stack are left to the stack

	Collected uint64 // flows that had ended, since the start
	Forgotten uint64 // flows of UDP whose backend served no more, since the start

	Passes   uint64
	LastPass time.Time     // when it began; zero: there was none
	Took     time.Duration // the last one
	Busy     time.Duration // all together
	Error    error         // of the last one; nil: it went well
}

// Left is how many flows are left to the stack, as another service proxy began them.
func (s *Status) Left() (n int) {
	for k, flows := range s.Flows {
		if k.State == Stack {
			n += flows
		}
	}
	return n
}

// Status tells how things are.
func (c *Collector) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status // add replaces Flows, and never changes it
}

// add takes the results of a pass.
func (s *Status) add(p *pass, begun time.Time, took time.Duration, err error) {
	if err == nil {
		s.Entries, s.Flows = max(0, p.entries), maps.Clone(p.flows)
		maps.DeleteFunc(s.Flows, func(_ Kind, n int) bool { return n <= 0 })
	}
	s.Collected += uint64(p.collected)
	s.Forgotten += uint64(p.forgotten)
	s.Passes++
	s.LastPass, s.Took, s.Error = begun, took, err
	s.Busy += took
}
