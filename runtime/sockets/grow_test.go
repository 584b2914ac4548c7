package sockets

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// TestFullMaps: a map is to grow for living sockets alone, and not above its bound.
func TestFullMaps(t *testing.T) {
	newMap := func(typ ebpf.MapType, key, value, entries uint32) *ebpf.Map {
		spec := &ebpf.MapSpec{Type: typ, KeySize: key, ValueSize: value, MaxEntries: entries}
		if typ == ebpf.Hash {
			spec.Flags = 1 // BPF_F_NO_PREALLOC
		}
		m, err := ebpf.NewMap(spec)
		must(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	const size = 64
	rev, affinity, tcp := newMap(ebpf.Hash, 32, 24, size), newMap(ebpf.Hash, 16, 8, size), newMap(ebpf.Array, 4, 48, bpf.MaxTCPSockets)
	m := &Maps{RevNat: []*ebpf.Map{rev}, Affinity: []*ebpf.Map{affinity}, TCP: tcp, Batch: lab.KernelFeatures().Batch}
	var live []uint64
	for cookie := uint64(1); cookie <= size/4*3+1; cookie++ {
		must(t, rev.Put(bpf.UDPRevNatKey{Cookie: cookie}, bpf.UDPRevNat{}))
		must(t, affinity.Put(bpf.SockAffinityKey{Cookie: cookie}, bpf.SockAffinity{}))
		live = append(live, cookie)
	}
	for _, tc := range []struct {
		name string
		live []uint64
		want []bpf.MapName
	}{
		{"all live", live, []bpf.MapName{bpf.MapUDPSockRevNat, bpf.MapUDPSockAffinity}},
		{"all but one", live[1:], nil},
		{"none", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := fullMaps(m, tc.live); err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%v, %v, want %v", got, err, tc.want)
			}
		})
	}
	m.RevNat[0] = newMap(ebpf.Hash, 32, 24, bpf.MaxUDPSockets)
	for _, cookie := range live {
		must(t, m.RevNat[0].Put(bpf.UDPRevNatKey{Cookie: cookie}, bpf.UDPRevNat{}))
	}
	if got, err := fullMaps(m, live); err != nil || !slices.Equal(got, []bpf.MapName{bpf.MapUDPSockAffinity}) {
		t.Errorf("%v, %v: what is at its bound stays", got, err)
	}
	now := time.Now()
	r := &Reconciler{cfg: Config{Log: discard}, now: func() time.Time { return now }}
	asked := make(chan []bpf.MapName, 1)
	r.cfg.Grow = func(_ context.Context, full ...bpf.MapName) error { asked <- full; return nil }
	r.grow(t.Context(), m, live)
	if got := <-asked; !slices.Equal(got, []bpf.MapName{bpf.MapUDPSockAffinity}) {
		t.Errorf("asked for %v", got)
	}
	lab.Await(t, "its end", func() bool { return !r.growing.Load() })
	r.cfg.Grow = func(context.Context, ...bpf.MapName) error { asked <- nil; return errors.New("no") }
	for _, tc := range []struct {
		later time.Duration
		asks  bool
	}{{0, true}, {growRetry - 1, false}, {1, true}} {
		now = now.Add(tc.later)
		r.grow(t.Context(), m, live)
		lab.Await(t, "its end", func() bool { return !r.growing.Load() })
		if (len(asked) == 1) != tc.asks {
			t.Errorf("%v later it was asked %d times", tc.later, len(asked))
		}
		for len(asked) > 0 {
			<-asked
		}
	}
}
