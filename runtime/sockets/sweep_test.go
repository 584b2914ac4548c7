package sockets

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/clients"
)

// sweepNow sweeps if it is due, a time later.
func (r *rig) sweepNow(later time.Duration) Status {
	r.n.t.Helper()
	r.ahead += later
	r.sweep(r.n.t.Context())
	return r.Status()
}

// Entries of closed sockets go, those of others stay: of connected and unconnected ones, of the node and of pods.
func TestSweepRemovesEntriesOfClosedSockets(t *testing.T) {
	n := newNode(t)
	machines := []clients.Machine{n.l, n.addPod(1)}
	r := n.reconciler()
	stay, close := n.clientsOf(machines, "udp", 0), n.clientsOf(machines, "udp", 0)
	for i, c := range append(append([]client{}, stay...), close...) {
		if i%2 == 0 {
			c.connects(c.vip)
		} else {
			c.want("ok", "sendto %s", c.vip)
			c.want(name(0), "recv")
		}
	}
	ways, kept := n.ways(), n.kept()
	for range 3 { // all are open
		if st := r.sweepNow(sweepInterval); st.Swept != 0 || st.SweepError != nil {
			t.Fatalf("%+v", st)
		}
	}
	for _, c := range close {
		c.quit()
	}
	if st := r.sweepNow(sweepInterval); st.Swept != 0 {
		t.Errorf("in the first sweep: %+v", st)
	}
	st := r.sweepNow(sweepInterval)
	if wantWays, wantKept := ways-len(close), kept-len(close)/2; n.ways() != wantWays || n.kept() != wantKept || st.Swept != uint64(len(close)+len(close)/2) {
		t.Errorf("%d ways back and %d kept backends are left, want %d and %d: %+v", n.ways(), n.kept(), wantWays, wantKept, st)
	}
	for i, c := range stay {
		if i%2 == 0 {
			c.want(c.vip, "peer")
		}
	}
}

// kept counts the backends that UDP sockets keep.
func (n *node) kept() (count int) {
	var key bpf.SockAffinityKey
	var value bpf.SockAffinity
	for it := n.maps.Map(bpf.MapUDPSockAffinity).Iterate(); it.Next(&key, &value); {
		count++
	}
	return count
}

// The owner of an entry may live where nobody could look.
func TestSweepRemovesNothingWhereItCannotLook(t *testing.T) {
	n := newNode(t)
	a := open(t, n.addPod(1), "udp4", 0)
	a.connects(vip4)
	file := filepath.Join(t.TempDir(), "proc")
	must(t, os.WriteFile(file, nil, 0o600))
	r := n.reconciler(func(c *Config) { c.Namespaces = netns.Config{Host: n.l.Netns, Proc: file} })
	for range 3 {
		if st := r.sweepNow(sweepInterval); st.Swept != 0 || st.SweepError == nil || n.ways() != 1 {
			t.Errorf("%+v, %d ways back", st, n.ways())
		}
	}
}

// Sweeps come each minute, or when a quarter of a map was added.
func TestSweepComesWhenMapsFill(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	last := r.sweepNow(0).LastSweep
	if last.IsZero() {
		t.Fatal("no first sweep")
	}
	if got := r.sweepNow(usageInterval).LastSweep; got != last {
		t.Error("a sweep though nothing was added")
	}
	usage := n.maps.Map(bpf.MapSockUsage)
	quarter := uint64(n.maps.Map(bpf.MapUDPSockAffinity).MaxEntries() / sweepAt)
	for _, tc := range []struct {
		name                 string
		inserted, overflowed uint64
		sweeps               bool
	}{{"a quarter", quarter, 0, false}, {"one more", 1, 0, true}, {"an overflow", 0, 1, true}, {"nothing", 0, 0, false}} {
		var u bpf.SockUsage
		must(t, usage.Lookup(bpf.SockUsageAffinity, &u))
		u.Inserted += tc.inserted
		u.Overflowed += tc.overflowed
		must(t, usage.Put(bpf.SockUsageAffinity, u))
		got := r.sweepNow(usageInterval).LastSweep
		if (got != last) != tc.sweeps {
			t.Errorf("%s: a sweep is %v, want %v", tc.name, got != last, tc.sweeps)
		}
		last = got
	}
	if got := r.sweepNow(sweepInterval).LastSweep; got == last {
		t.Error("no sweep after a minute")
	}
}

// A list of all sockets that fails, as where a namespace can not be entered, says nothing of closed ones; but who has no way
// back is known.
func TestSweepThatFailsForgetsWhoIsGone(t *testing.T) {
	rev, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 24, MaxEntries: 64})
	must(t, err)
	t.Cleanup(func() { rev.Close() })
	r := New(Config{Log: slog.New(slog.DiscardHandler), Namespaces: netns.Config{Proc: "/nowhere"}, Maps: func() (Maps, error) { return Maps{RevNat: []*ebpf.Map{rev}}, nil }})
	r.generation = 5
	for i := range uint64(100) {
		r.owners[i] = &owner{seen: 1}
	}
	r.sweep(t.Context())
	if n := len(r.owners); n != 0 {
		t.Errorf("%d owners of sockets without a way back stay after a sweep that failed: %v", n, r.Status().SweepError)
	}
}
