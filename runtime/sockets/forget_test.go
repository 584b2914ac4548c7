package sockets

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
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

// A socket asks another Service that has the same backend, after it has left that for the first one.
func TestForgetLeavesTheWayBackOfAnotherService(t *testing.T) {
	rev, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 24, MaxEntries: 1024})
	must(t, err)
	t.Cleanup(func() { rev.Close() })
	log, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 56, MaxEntries: 64})
	must(t, err)
	t.Cleanup(func() { log.Close() })
	m := &Maps{RevNat: []*ebpf.Map{rev}, Log: log}
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	now := time.Now()
	r.now = func() time.Time { return now }
	f1, f2 := netip.MustParseAddrPort(vip4), netip.MustParseAddrPort("10.96.0.99:53")
	other := types.NamespacedName{Namespace: "x", Name: "y"}
	one := services.Port{Key: services.PortKey{Service: other, Proto: bpf.UDP}}
	one.Frontends = []bpf.FrontendKey{bpf.FrontendKeyOf(f2, bpf.UDP)}
	one.Backends = []netip.AddrPort{backend4(0)}
	one.Serving = one.Backends
	r.Set(dns, ports(0, 1))
	r.Set(other, []services.Port{one})
	r.Begin()
	r.Done(nil)
	const cookie = 77
	key := bpf.UDPRevNatKey{Cookie: cookie, Backend: bpf.AddressOf(backend4(0).Addr()), Port: bpf.PortOf(backend4(0).Port())}
	to := func(f netip.AddrPort) bpf.UDPRevNat {
		return bpf.UDPRevNat{Frontend: bpf.AddressOf(f.Addr()), Port: bpf.PortOf(f.Port())}
	}
	must(t, rev.Put(key, to(f1)))
	must(t, r.update(m)) // all
	r.Set(dns, ports(1))
	r.Begin()
	r.Done(nil)
	must(t, r.update(m))
	c := r.candidates[target{cookie, backend4(0), bpf.UDP}]
	if c == nil {
		t.Fatal("no candidate")
	}
	now = now.Add(time.Second)
	r.settle(c, now) // moved to backend 1
	now = now.Add(9 * time.Second)
	r.read = now // a look that read all, right before this
	now = now.Add(500 * time.Millisecond)
	must(t, rev.Put(key, to(f2))) // then the application connects it to the other Service: backend 0 again
	must(t, log.Put(nil, bpf.UDPWayBack{Key: key, Value: to(f2)}))
	r.all = true
	must(t, r.update(m)) // follows the log
	now = now.Add(time.Second)
	must(t, r.forget(m))
	var v bpf.UDPRevNat
	if err := rev.Lookup(key, &v); err != nil {
		t.Errorf("the way back of a connected socket was removed: %v", err)
	}
}
