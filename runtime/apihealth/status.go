package apihealth

import (
	"cmp"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Counters only ever grow, but for the last error.
type Counters struct {
	Probes   uint64 // questions asked
	Failures uint64 // questions without a good answer
	Changes  uint64 // sets given out
	Looks    uint64 // times that files were read or names looked up
	Saves    uint64 // times that the addresses were written to disk
	// SaveErrors counts what went wrong with that, LastSaveError is "" when the last try went well.
	SaveErrors    uint64
	LastSaveError string
}

// EndpointStatus is what is known about one endpoint that is asked.
type EndpointStatus struct {
	Endpoint apiserver.Endpoint
	// Source says who named it.
	Source apiserver.Source
	// First is true for the first tier; see the package's comment.
	First bool
	// InUse is true when the API service leads to it.
	InUse bool
	State apiserver.State
	// Asked is when it was asked last.
	Asked time.Time
	// Since is when the state began.
	Since time.Time
	// LastLive is when it last answered, zero if never.
	LastLive time.Time
	// Kind and Err say why it is not live.
	Kind apiserver.Kind
	Err  string
	// RTT is the time from question to answer, of the last answer.
	RTT              time.Duration
	Probes, Failures uint64
}

// NameStatus is what is known about one host name.
type NameStatus struct {
	Name      string // with port
	Addresses int    // of the last answer that had any
	Err       string // why the last question had no answer
}

// Status is what a Monitor knows at one time.
type Status struct {
	// Set is where the API service leads to.
	Set Set
	// Live is true when API servers answer there; otherwise these are the last
	// known good ones.
	Live bool
	// Answering is true when they answer, ready or not.
	Answering bool
	// Since is when the set or its being live last changed.
	Since time.Time
	// Endpoints are those that are asked, the first tier first.
	Endpoints []EndpointStatus
	Names     []NameStatus
	Counters  Counters
}

// Status gives what is known now.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{
		Set:  Set{slices.Clone(m.current[0].Addrs), slices.Clone(m.current[1].Addrs)},
		Live: m.live(), Answering: m.answers(), Since: m.since, Counters: m.counters,
	}
	for a, t := range m.targets {
		e := EndpointStatus{
			Endpoint: t.Endpoint, Source: t.Source, First: t.Preferred, State: t.state, Asked: t.asked, Since: t.since, LastLive: t.lastLive,
			Kind: t.kind, RTT: t.rtt, Probes: t.probes, Failures: t.failures,
			InUse: m.inUse(a),
		}
		if t.err != nil {
			e.Err = t.err.Error()
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	slices.SortFunc(s.Endpoints, func(a, b EndpointStatus) int {
		if a.First != b.First {
			if a.First {
				return -1
			}
			return 1
		}
		return a.Endpoint.Addr.Compare(b.Endpoint.Addr)
	})
	for e, n := range m.names {
		st := NameStatus{Name: e.String(), Addresses: len(n.addrs)}
		if n.err != nil {
			st.Err = n.err.Error()
		}
		s.Names = append(s.Names, st)
	}
	slices.SortFunc(s.Names, func(a, b NameStatus) int { return cmp.Compare(a.Name, b.Name) })
	return s
}
