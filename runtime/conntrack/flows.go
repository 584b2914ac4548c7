package conntrack

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Flow is a client's flow.
type Flow struct {
	Proto    bpf.Proto
	Client   netip.AddrPort
	Frontend netip.AddrPort
	Backend  netip.AddrPort
	State    State
	Index    uint32        // of the service; 0: none, or not known
	Age      time.Duration // since the last packet, up to a second more

	entry Entry
}

func (f *Flow) compare(o *Flow) int {
	return cmp.Or(cmp.Compare(f.Proto, o.Proto), f.Frontend.Compare(o.Frontend), f.Client.Compare(o.Client))
}

// NewTable finds out whether a map can be read in batches.
func NewTable(m *ebpf.Map) Table {
	t := Table{Map: m, Batch: true}
	t.Batch = t.read(func(Entry) bool { return false }) == nil
	return t
}

func flowOf(e Entry, now uint64) Flow {
	return Flow{
		Proto: e.Key.Proto, Client: e.Key.Source(), Frontend: e.Key.Destination(), Backend: e.Flow.AddrPort(), State: StateOf(e.Flow), Index: e.Flow.Index,
		Age: Age(e.Flow, now), entry: e,
	}
}

// each calls do for the clients' flows that a filter means.
func (t Table) each(which *Filter, do func(*Flow) error) error {
	now := Now()
	var failed error
	err := t.read(func(e Entry) bool {
		if e.isClients() {
			if f := flowOf(e, now); which.matches(&f) {
				failed = do(&f)
			}
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// List returns the flows that a filter means, by protocol, frontend and client.
func (t Table) List(which Filter) ([]Flow, error) {
	var list []Flow
	err := t.each(&which, func(f *Flow) error { list = append(list, *f); return nil })
	slices.SortFunc(list, func(a, b Flow) int { return a.compare(&b) })
	return slices.CompactFunc(list, func(a, b Flow) bool { return a.entry.Key == b.entry.Key }), err
}

// Source is the address of this node that a flow's packets get on their way to the backend; invalid: they keep the client's.
func (t Table) Source(f *Flow) (netip.AddrPort, error) {
	g, err := t.groupOf(f.entry)
	if err != nil || g.masquerades == nil || isMarker(g.masquerades.Flow) {
		return netip.AddrPort{}, err
	}
	return g.masquerades.Flow.AddrPort(), nil
}

// Counts are how many flows there are.
type Counts struct {
	Entries  int // of the map, which are two to four for a flow
	Capacity int
	Flows    map[Kind]int
}

// Count counts the flows that a filter means. Entries are all.
func (t Table) Count(which Filter) (Counts, error) {
	c := Counts{Capacity: int(t.Map.MaxEntries()), Flows: map[Kind]int{}}
	now := Now()
	err := t.read(func(e Entry) bool {
		c.Entries++
		if e.isClients() {
			if f := flowOf(e, now); which.matches(&f) {
				c.Flows[Kind{f.Proto, f.State}]++
			}
		}
		return true
	})
	return c, err
}

// Flush removes the flows that a filter means, with all that belongs to them, and returns how many. With an empty one, it also
// removes what is left of others.
//
// The packets that follow are a new flow's, if they begin one: UDP does at once, TCP and SCTP don't.
func (t Table) Flush(which Filter) (n int, err error) {
	var list []Entry
	if err := t.each(&which, func(f *Flow) error { list = append(list, f.entry); return nil }); err != nil {
		return 0, err
	}
	for _, e := range list {
		g, err := t.groupOf(e)
		if err != nil {
			return n, err
		}
		removed, err := t.remove(&g)
		if len(removed) > 0 {
			n++
		}
		if err != nil {
			return n, err
		}
	}
	if !which.Empty() {
		return n, nil
	}
	list = list[:0]
	if err := t.read(func(e Entry) bool { list = append(list, e); return true }); err != nil {
		return n, err
	}
	for _, e := range list {
		if _, err := t.remove(&group{Entry: e}); err != nil {
			return n, err
		}
	}
	return n, nil
}
