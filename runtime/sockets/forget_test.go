package sockets

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Ways back from backends that sockets have left stay for late answers, while the map has room for others.
func TestForgetMakesRoom(t *testing.T) {
	const size = 64
	rev, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 24, MaxEntries: size})
	must(t, err)
	t.Cleanup(func() { rev.Close() })
	r := New(Config{})
	now := time.Now()
	r.now = func() time.Time { return now }
	m := &Maps{RevNat: []*ebpf.Map{rev}}
	cookie := uint64(0)
	settle := func(count int) {
		for range count {
			cookie++
			c := &candidate{target: target{cookie, backend4(0), bpf.UDP}}
			r.candidates[c.target] = c
			r.settle(c, now)
			must(t, rev.Put(bpf.UDPRevNatKey{Cookie: c.cookie, Backend: bpf.AddressOf(c.backend.Addr()), Port: bpf.PortOf(c.backend.Port())}, bpf.UDPRevNat{}))
		}
	}
	left := func() (n int) {
		must(t, readMap(rev, bpf.ReadConfig{}, func(*bpf.UDPRevNatKey, *bpf.UDPRevNat) { n++ }))
		return n
	}
	settle(size / forgetAt)
	if must(t, r.forget(m)); left() != size/forgetAt {
		t.Errorf("%d are left of an eighth of the map", left())
	}
	settle(1)
	if must(t, r.forget(m)); left() != 0 || len(r.candidates) != 0 {
		t.Errorf("%d ways back and %d candidates are left of more than an eighth", left(), len(r.candidates))
	}
	settle(1)
	now = now.Add(lateTime - 1)
	if must(t, r.forget(m)); left() != 1 {
		t.Error("it went too early")
	}
	now = now.Add(1)
	if must(t, r.forget(m)); left() != 0 {
		t.Error("it did not go")
	}
}
