package conntrack

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Entry is one of the map.
type Entry struct {
	Key  bpf.FlowKey
	Flow bpf.Flow
}

// isClients reports whether an entry is for the packets in of a client's flow: there is one for each flow.
func (e Entry) isClients() bool {
	return e.Key.Way == bpf.WayIn && e.Flow.Flags&bpf.FlowMasquerade == 0
}

// Table is the map of flows.
type Table struct {
	Map *ebpf.Map
	// Batch: the kernel has batch operations (bpf.Features.Batch).
	Batch bool
}

// read calls each for the entries until it returns false. Some may be missed, or come twice, where programs change the map.
func (t Table) read(each func(Entry) bool) error {
	err := bpf.ReadMap(t.Map, bpf.ReadConfig{Batch: t.Batch}, func(k *bpf.FlowKey, f *bpf.Flow) bool { return each(Entry{*k, *f}) })
	if errors.Is(err, ebpf.ErrIterationAborted) { // the rest comes with the next pass
		return nil
	}
	return err
}

func (t Table) lookup(k bpf.FlowKey) (f bpf.Flow, there bool, err error) {
	switch err := t.Map.Lookup(&k, &f); {
	case err == nil:
		return f, true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return f, false, nil
	default:
		return f, false, fmt.Errorf("look up a flow: %w", err)
	}
}

// remove removes the entries of a flow, and returns those that were there.
func (t Table) remove(g *group) (removed []Entry, err error) {
	for _, e := range g.members() {
		switch err := t.Map.Delete(&e.Key); {
		case err == nil:
			removed = append(removed, e)
		case !errors.Is(err, ebpf.ErrKeyNotExist):
			return removed, fmt.Errorf("remove a flow: %w", err)
		}
	}
	return removed, nil
}

// group is an entry with those that belong to its flow.
type group struct {
	Entry
	partner     *bpf.Flow // of the same pair; nil: it was evicted
	superseded  bool      // or belongs to another entry by now: the client has begun anew with the same port
	client      *bpf.Flow // of masquerade: what packets of the backend to the client become
	masquerades *Entry    // of packets to the client: those of the client to the backend, if they are masqueraded
}

// groupOf looks up what belongs to an entry.
func (t Table) groupOf(e Entry) (g group, err error) {
	g.Entry = e
	if e.Flow.Flags&bpf.FlowStack != 0 {
		return g, nil
	}
	if !isMarker(e.Flow) {
		key := e.Key.Partner(e.Flow)
		f, there, err := t.lookup(key)
		if err != nil {
			return g, err
		}
		if there && key.Partner(f) == e.Key {
			g.partner = &f
		}
		g.superseded = there && g.partner == nil
	}
	toClient, toBackend := between(e)
	if e.Flow.Flags&bpf.FlowMasquerade != 0 {
		f, there, err := t.lookup(toClient)
		if there {
			g.client = &f
		}
		return g, err
	}
	if e.Key.Way == bpf.WayIn && g.partner == nil { // the entries behind it are another flow's
		return g, nil
	}
	f, there, err := t.lookup(toBackend)
	if there && f.Flags&bpf.FlowMasquerade != 0 {
		g.masquerades = &Entry{toBackend, f}
	}
	return g, err
}

// between are the keys of packets out between an entry's client and backend.
func between(e Entry) (toClient, toBackend bpf.FlowKey) {
	k, f := e.Key, e.Flow
	client, clientPort, backend, backendPort := k.Src, k.Sport, f.Addr, f.Port
	masquerade := f.Flags&bpf.FlowMasquerade != 0
	switch {
	case masquerade && k.Way == bpf.WayOut:
		backend, backendPort = k.Dst, k.Dport
	case masquerade:
		client, clientPort, backend, backendPort = f.Addr, f.Port, k.Src, k.Sport
	case k.Way == bpf.WayOut:
		client, clientPort, backend, backendPort = k.Dst, k.Dport, k.Src, k.Sport
	}
	toClient = bpf.FlowKey{Src: backend, Sport: backendPort, Dst: client, Dport: clientPort, Proto: k.Proto, Way: bpf.WayOut}
	toBackend = bpf.FlowKey{Src: client, Sport: clientPort, Dst: backend, Dport: backendPort, Proto: k.Proto, Way: bpf.WayOut}
	return toClient, toBackend
}

// over reports whether a flow has ended, at a time.
func (g *group) over(now uint64) bool {
	f := g.Flow
	switch {
	case f.Flags&bpf.FlowStack != 0:
		return false
	case isMarker(f):
		return g.client == nil && overdue(g.Key.Proto, f, now)
	case f.Flags&bpf.FlowMasquerade != 0 && g.client != nil && !g.superseded:
		return false // it goes with the client's pair
	case g.partner != nil:
		return overdue(g.Key.Proto, joined(f, *g.partner), now)
	}
	return overdue(g.Key.Proto, f, now)
}

// members are the entries that go with a flow, in the order to remove them: those of the client's pair, the one for packets out
// first (see the package's comment on races), then what their packets needed.
func (g *group) members() []Entry {
	list := make([]Entry, 0, 4)
	if g.partner != nil {
		list = append(list, Entry{g.Key.Partner(g.Flow), *g.partner})
	}
	list = append(list, g.Entry)
	if g.partner != nil && g.Key.Way == bpf.WayOut {
		list[0], list[1] = list[1], list[0]
	}
	if m := g.masquerades; m != nil {
		list = append(list, *m)
		if !isMarker(m.Flow) {
			back := Entry{Key: m.Key.Partner(m.Flow)}
			back.Flow.Flags = bpf.FlowMasquerade
			list = append(list, back)
		}
	}
	return list
}
