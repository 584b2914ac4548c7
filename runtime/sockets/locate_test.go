package sockets

import (
	"net/netip"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// A list of all sockets that takes longer than a look is used by a later one: many network namespaces must not keep the
// sockets of all others from being found.
func TestLocateTakesLateSearches(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.patience = 0
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	for _, c := range all {
		c.connects(c.vip)
	}
	r.lead(1)
	st := r.step(0)
	for range 3 {
		lab.Await(t, "a search", func() bool { return !r.searching.underWay() || len(r.searching.result) == 1 })
		st = r.step(againTime)
	}
	if st.Moved != uint64(len(all)) || st.EndedUDP != 0 || st.Searches != 1 {
		t.Errorf("%+v, want all %d moved after one search", st, len(all))
	}
	unknown := &candidate{target: target{cookie: 1 << 50, backend: backend4(0), proto: bpf.UDP}}
	must(t, r.search(t.Context(), map[*candidate]bool{unknown: true}))
	lab.Await(t, "a search", func() bool { return len(r.searching.result) == 1 })
	must(t, r.takeSearch())
	if unknown.misses != 1 {
		t.Errorf("a socket that is not there was missed %d times", unknown.misses)
	}
}

// While one hangs, nothing else is begun, and what is known already is used.
func TestLocateWhileASearchHangs(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	known := open(t, n.addPod(1), "udp4", 0)
	known.connects(vip4)
	r.sweepNow(0)
	r.patience = 0
	hangs := make(chan bool)
	r.searching.run(0, func() found { <-hangs; return found{} })
	later := open(t, n.l, "udp4", 0)
	later.connects(vip4)
	r.lead(1)
	lab.Await(t, "a move", func() bool { return r.step(0).Moved == 1 })
	if st := r.step(goneTime); st.Counts != (Counts{Moved: 1}) || st.Searches != 0 || st.Error != nil {
		t.Errorf("%+v", st)
	}
	r.searching.began = time.Now().Add(-searchTime)
	r.look(t.Context())
	if st := r.Status(); st.Error != nil {
		t.Errorf("nothing is to be found now: %v", st.Error)
	}
	r.ahead += againTime
	r.look(t.Context())
	if st := r.Status(); st.Error == nil {
		t.Error("nobody hears that the list hangs")
	}
	close(hangs)
	lab.Await(t, "a move", func() bool { r.ahead += againTime; r.look(t.Context()); return r.Status().Moved == 2 })
}

// What could not be looked at may have the socket.
func TestMissedBelievesCompleteListsAlone(t *testing.T) {
	r := New(Config{})
	c := &candidate{}
	at := time.Now()
	for range 5 {
		r.missed(c, false, at)
	}
	if c.misses != 0 || !c.settled.IsZero() || !c.due.Equal(at.Add(interval)) {
		t.Errorf("incomplete: %+v", c)
	}
	for i, settled := range []bool{false, true} {
		if r.missed(c, true, at); c.settled.IsZero() == settled {
			t.Errorf("complete, time %d: %+v", i+1, c)
		}
	}
}

// A socket that has two ways back is moved from where it is, not from where it was.
func TestMoveBySeveralWaysBack(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	elsewhere := netip.MustParseAddrPort("192.0.2.99:53")
	other := netip.AddrPortFrom(backend4(1).Addr(), 9999)
	n.noteWay(a, elsewhere, other)
	r.Set(named("other"), udp("other", other.String(), backend4(1).String()))
	r.sweepNow(0) // it is known where the socket is
	r.lead(1)
	m := n.sockMaps()
	must(t, r.update(&m))
	for _, c := range r.candidates {
		if c.backend == backend4(0) {
			c.misses = 1 // it is searched once more
		}
	}
	if len(r.candidates) != 2 {
		t.Fatalf("%d candidates", len(r.candidates))
	}
	if st := r.step(0); st.Moved != 1 {
		t.Errorf("%+v: want one move", st)
	}
	a.want(vip4, "peer")
	if got := a.exchange(); got != name(1) {
		t.Errorf("answered by %s", got)
	}
}
