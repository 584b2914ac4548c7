package sockets

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// A look reads the ways back of all sockets at an interval only; between, those that programs have written since are known
// by the log, also of a Service that they change to and back.
func TestIndexFollowsWhatProgramsWrite(t *testing.T) {
	for family, kinds := range map[string][]string{"IPv4": {"udp4", vip4}, "IPv6": {"udp6", vip6}} {
		t.Run(family, func(t *testing.T) {
			n := newNode(t)
			r := n.reconciler()
			r.lead(0)
			r.step(0) // has read all
			read := r.read
			a := open(t, n.addPod(1), kinds[0], 0)
			a.connects(kinds[1])
			for i, at := range []int{1, 0, 1} {
				r.lead(at)
				if st := r.step(goneTime); st.Moved != uint64(i+1) {
					t.Errorf("%+v: want %d moves", st, i+1)
				}
				if got := a.exchange(); got != name(at) {
					t.Errorf("answered by %s, want backend %d", got, at)
				}
			}
			if r.read != read {
				t.Error("all ways back were read")
			}
		})
	}
}

// What a full log has missed is found.
func TestIndexWithAFullLog(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.lead(0)
	r.step(0)
	log := n.maps.Map(bpf.MapUDPLog)
	for range log.MaxEntries() {
		must(t, log.Put(nil, bpf.UDPWayBack{Key: bpf.UDPRevNatKey{Cookie: 1 << 40}}))
	}
	a := open(t, n.addPod(1), "udp4", 0)
	a.connects(vip4)
	r.lead(1)
	if st := r.step(0); st.Moved != 1 {
		t.Errorf("%+v: want it moved", st)
	}
}

// A table of a former version, whose programs have no log.
func TestIndexWithoutALog(t *testing.T) {
	n := newNode(t)
	r := n.reconciler(func(c *Config) {
		maps := c.Maps
		c.Maps = func() (Maps, error) { m, err := maps(); m.Log = nil; return m, err }
	})
	r.lead(0)
	r.step(0)
	a := open(t, n.addPod(1), "udp4", 0)
	a.connects(vip4)
	r.lead(1)
	if st := r.step(0); st.Moved != 1 {
		t.Errorf("%+v: want it moved", st)
	}
}

// The hash that programs ask first is right, and what no map has is forgotten.
func TestIndexLooksUpWhatItHas(t *testing.T) {
	var maps []*ebpf.Map
	for range 2 {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 24, MaxEntries: 8})
		must(t, err)
		t.Cleanup(func() { m.Close() })
		maps = append(maps, m)
	}
	at := func(port uint16) pair {
		return pair{backend: bpf.AddressOf(backend4(0).Addr()), backendPort: bpf.PortOf(53), frontendPort: bpf.PortOf(port)}
	}
	put := func(m *ebpf.Map, cookie uint64, port uint16) {
		must(t, m.Put(bpf.UDPRevNatKey{Cookie: cookie, Backend: at(port).backend, Port: at(port).backendPort}, bpf.UDPRevNat{Port: bpf.PortOf(port)}))
	}
	put(maps[0], 1, 10)
	put(maps[1], 1, 11)
	put(maps[1], 2, 11)
	x := index{}
	for cookie := range uint64(4) {
		x.add(at(10), cookie)
		x.add(at(11), cookie)
		x.add(at(11), cookie) // twice
	}
	found := map[uint16][]uint64{}
	must(t, x.stale(&Maps{RevNat: maps}, func(pair) judgement { return judgement{verdict: Stale} }, func(target, netip.AddrPort) bool { return false }, func(t target, frontend netip.AddrPort, _ judgement) {
		found[frontend.Port()] = append(found[frontend.Port()], t.cookie)
	}))
	if len(found[10]) != 1 || found[10][0] != 1 || len(found[11]) != 1 || found[11][0] != 2 {
		t.Errorf("found %v", found)
	}
	if len(x[at(10)]) != 1 || len(x[at(11)]) != 1 {
		t.Errorf("kept %v", x)
	}
	x.empty()
	x.empty()
	if len(x) != 0 {
		t.Errorf("left %v", x)
	}
}

// followed is a Reconciler of a Service that has lost its first backend, and maps with no sockets, which it has read.
func followed(t *testing.T) (r *Reconciler, m *Maps, put func(m *Maps, cookie uint64)) {
	t.Helper()
	m = &Maps{RevNat: []*ebpf.Map{revNat(t)}}
	log, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 56, MaxEntries: 8})
	must(t, err)
	t.Cleanup(func() { log.Close() })
	m.Log = log
	r = New(Config{Log: discard})
	r.Set(dns, ports(1))
	r.Begin()
	r.Done(nil)
	must(t, r.update(m))
	vip := netip.MustParseAddrPort(vip4)
	return r, m, func(m *Maps, cookie uint64) {
		key := bpf.UDPRevNatKey{Cookie: cookie, Backend: bpf.AddressOf(backend4(0).Addr()), Port: bpf.PortOf(backend4(0).Port())}
		value := bpf.UDPRevNat{Frontend: bpf.AddressOf(vip.Addr()), Port: bpf.PortOf(vip.Port())}
		must(t, m.RevNat[0].Put(key, value))
		must(t, m.Log.Put(nil, bpf.UDPWayBack{Key: key, Value: value}))
	}
}

func revNat(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 24, MaxEntries: 8})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// Maps that were exchanged, as by a growth, are read: while that went on, the log was of others.
func TestIndexAfterMapsWereExchanged(t *testing.T) {
	r, m, put := followed(t)
	larger := &Maps{RevNat: []*ebpf.Map{revNat(t)}, Log: m.Log}
	put(larger, 7)
	r.all = true
	must(t, r.update(m)) // takes it from the log, and does not find it
	must(t, r.update(larger))
	if len(r.candidates) != 1 {
		t.Errorf("%d candidates, want one", len(r.candidates))
	}
}

// A change that could not be looked at, is looked at the next time.
func TestIndexAfterAnError(t *testing.T) {
	r, m, put := followed(t)
	put(m, 7)
	broken := *m
	broken.Log = revNat(t) // no queue
	r.all = true
	if err := r.update(&broken); err == nil {
		t.Fatal("no error")
	}
	must(t, r.update(m))
	if len(r.candidates) != 1 {
		t.Errorf("%d candidates, want one", len(r.candidates))
	}
}

// A candidate whose way back has gone is none any more.
func TestIndexForgetsWhatWentByItself(t *testing.T) {
	r, m, put := followed(t)
	put(m, 7)
	r.all = true
	must(t, r.update(m))
	if len(r.candidates) != 1 {
		t.Fatalf("%d candidates, want one", len(r.candidates))
	}
	must(t, m.RevNat[0].Delete(bpf.UDPRevNatKey{Cookie: 7, Backend: bpf.AddressOf(backend4(0).Addr()), Port: bpf.PortOf(backend4(0).Port())}))
	r.all = true
	if must(t, r.update(m)); len(r.candidates) != 0 || len(r.active) != 0 {
		t.Errorf("%d candidates are left", len(r.candidates))
	}
}
