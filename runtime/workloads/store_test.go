package workloads

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// The frontends of the kernel tests. The last is for the pods .0 to .3 and the node 192.0.2.1 alone.
const (
	vip4, vip6 = "10.96.0.10:53", "[fd00:96::10]:53"
	limited    = "203.0.113.10:53"
)

// serve starts a backend and the programs, and returns the table's maps.
func (m *machine) serve() *bpf.Maps {
	t := m.t
	t.Helper()
	backends := map[bool]netip.AddrPort{true: netip.MustParseAddrPort("192.0.2.11:53"), false: netip.MustParseAddrPort("[2001:db8::11]:53")}
	for _, at := range backends {
		must(t, m.l.AddAddr(netip.PrefixFrom(at.Addr(), at.Addr().BitLen()).String()))
		u, err := standin.StartUDPEcho(m.l, "backend", at)
		must(t, err)
		t.Cleanup(u.Close)
		e, err := standin.StartTCPEcho(m.l, "backend", at)
		must(t, err)
		t.Cleanup(e.Close)
	}
	var svcs []nat.Service
	for _, proto := range []bpf.Proto{bpf.TCP, bpf.UDP} {
		for _, vip := range []string{vip4, vip6, limited} {
			at := netip.MustParseAddrPort(vip)
			key := bpf.FrontendKeyOf(at, proto)
			svc := nat.Service{Name: fmt.Sprint(proto, vip), Frontends: []bpf.FrontendKey{key}, Backends: []netip.AddrPort{backends[at.Addr().Is4()]}}
			if vip == limited {
				svc.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{key: bpf.FrontendSourceRange}
				svc.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/30"), netip.MustParsePrefix("192.0.2.1/32")}
			}
			svcs = append(svcs, svc)
		}
	}
	features, pins := bpf.Features(lab.KernelFeatures()), bpf.PinsBelow(m.l.BPFFS)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: pins, Sizes: bpf.Sizes{Frontends: 256, Services: 2048, Backends: 256}, Features: features, Services: svcs})
	must(t, err)
	defer seeded.Close()
	var st unix.Stat_t
	must(t, unix.Stat(m.l.Cgroup, &st))
	attached, err := attach.Attach(attach.Config{Pins: pins, Target: attach.Cgroup{Path: m.l.Cgroup, ID: st.Ino, Links: features.Link}, Programs: attach.Balancer{Balancer: bpf.Balancer{UDP: true}, Maps: seeded.Maps, Features: features}})
	must(t, err)
	defer attached.Close()
	must(t, attached.Commit())
	must(t, seeded.Commit())
	maps, err := bpf.OpenMaps(pins, false)
	must(t, err)
	t.Cleanup(func() { maps.Close() })
	return maps
}

// reaches asks whether a client is translated, in every way in which one can ask for a Service.
func reaches(t testing.TB, p clients.Program, m clients.Machine, want bool, vips ...string) {
	t.Helper()
	for _, vip := range vips {
		for _, mode := range []clients.Mode{clients.TCP, clients.UDPConnected, clients.UDPUnconnected} {
			if e := p.Run(t, m, mode, vip, "hello")[0]; (e.Server() == "backend") != want {
				t.Errorf("%s to %s: %+v, want translated: %v", mode, vip, e, want)
			}
		}
	}
}

// blackhole makes what isn't translated fail at once.
func blackhole(t testing.TB, p *lab.Pod) {
	t.Helper()
	must(t, p.Do(func() error {
		for _, cidr := range []string{"10.96.0.0/16", "fd00:96::/64", "203.0.113.0/24"} {
			_, dst, _ := net.ParseCIDR(cidr)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestKernelTreatsPodsAsRequested(t *testing.T) {
	for name, byProgram := range map[string]bool{"cookies by what the kernel has": false, "cookies by a program": true} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.setCookies(byProgram)
			treatPods(t, m)
		})
	}
}

func treatPods(t *testing.T, m *machine) {
	store := NewKernel(m.serve())
	p := clients.Go(t)
	near, _ := m.addPod(1)
	far, _ := m.addPod(9)
	m.start(near)
	m.start(far)
	blackhole(t, near)
	blackhole(t, far)
	r := start(t, Config{Store: store, Namespaces: m.c, Cookie: m.cookie, Programs: lab.KernelFeatures().NetnsCookie})
	r.SetFallback(true)
	r.SetPod(newPod("near", ips(1)))
	r.SetPod(newPod("far", ips(9)))
	r.SetSynced()
	settled(t, r)
	reaches(t, p, near, false, limited) // no client's address is known
	r.SetRanges(true)
	settled(t, r)
	reaches(t, p, near, true, limited)
	reaches(t, p, m.l, true, limited)
	reaches(t, p, far, false, limited)

	for _, off := range []bool{true, false} {
		change := says(map[bool]string{true: Off, false: On}[off])
		r.SetPod(newPod("far", ips(9), change))
		settled(t, r)
		reaches(t, p, far, !off, vip4, vip6)
		reaches(t, p, near, true, vip4, vip6, limited)
		reaches(t, p, m.l, true, vip4, vip6, limited)
	}
	r.SetPod(newPod("far", ips(9), says(Off)))
	r.SetRanges(false)
	settled(t, r)
	reaches(t, p, far, false, vip4)
	reaches(t, p, near, true, vip4)
	r.DeletePod(types.NamespacedName{Namespace: "default", Name: "far"})
	settled(t, r)
	reaches(t, p, far, true, vip4)
	if now, err := store.Read(); err != nil || len(now.Workloads) != 0 || now.Control != 0 {
		t.Errorf("left over: %+v, %v", now, err)
	}
}

func TestKernelStore(t *testing.T) {
	m := newMachine(t)
	maps := m.serve()
	store := NewKernel(maps)
	const others = bpf.Control(1) << 40
	must(t, maps.Map(bpf.MapControl).Put(uint32(0), others))
	want := optedOut(map[uint64]bpf.Workload{0: in("192.0.2.1", ""), 5: out("192.0.2.5", "2001:db8::5")})
	now, err := store.Read()
	must(t, err)
	for range 2 {
		if _, err := apply(store, &now, want); err != nil {
			t.Fatal(err)
		}
		now, err = store.Read()
		must(t, err)
		if len(now.Workloads) != 2 || now.Workloads[5] != want.Workloads[5] || now.Control != bpf.ControlOptOut {
			t.Errorf("the kernel has %+v, want %+v", now, want)
		}
	}
	must(t, store.Delete(77)) // never was there
	if _, err := apply(store, &now, Table{}); err != nil {
		t.Error(err)
	}
	var c bpf.Control
	must(t, maps.Map(bpf.MapControl).Lookup(uint32(0), &c))
	if now, err := store.Read(); err != nil || len(now.Workloads) != 0 || c != others {
		t.Errorf("%+v, %v, control %#x", now, err, c)
	}
	for i := range uint64(maps.Map(bpf.MapWorkload).MaxEntries()) {
		must(t, store.Put(i, bpf.Workload{}))
	}
	if err := store.Put(1<<40, bpf.Workload{}); err == nil || !isFull(err) {
		t.Errorf("a full map: %v", err)
	}
}

// Whatever was there and whatever shall be: at any instant each namespace is treated as before or as after.
func TestApplyShowsTheOldOrTheNew(t *testing.T) {
	tables := []Table{
		{},
		{Workloads: map[uint64]bpf.Workload{1: in("192.0.2.1", ""), 2: in("192.0.2.2", "")}},
		{Workloads: map[uint64]bpf.Workload{1: out("192.0.2.1", ""), 2: in("192.0.2.2", "")}, Control: bpf.ControlOptOut},
		{Workloads: map[uint64]bpf.Workload{2: out("", ""), 3: out("", "")}, Control: bpf.ControlOptOut},
		{Workloads: map[uint64]bpf.Workload{1: out("192.0.2.1", "")}}, // as a killed runtime may leave it
	}
	for i, from := range tables {
		for j, to := range tables {
			f := newFake(100)
			for c, w := range from.Workloads {
				f.table.Workloads[c] = w
			}
			f.table.Control = from.Control
			before := map[uint64]bool{}
			for c := range uint64(5) {
				before[c] = f.optedOut(c)
			}
			f.observe = func(f *fake) {
				for c := range uint64(5) {
					after := to.Control != 0 && to.Workloads[c].Flags != 0
					if now := f.optedOut(c); now != before[c] && now != after {
						t.Errorf("from %d to %d: namespace %d is treated as neither wants", i, j, c)
					}
				}
			}
			now, err := f.Read()
			must(t, err)
			if _, err := apply(f, &now, to); err != nil {
				t.Error(err)
			}
			if diff := gocmp.Diff(to.Control, f.table.Control) + gocmp.Diff(len(to.Workloads), len(f.table.Workloads)) + gocmp.Diff(now, f.table); diff != "" {
				t.Errorf("from %d to %d: %s", i, j, diff)
			}
			f.writes = 0
			if n, err := apply(f, &now, to); n != 0 || f.writes != 0 || err != nil {
				t.Errorf("from %d to %d: twice is %d writes, %v", i, j, n, err)
			}
		}
	}
}

// Those who opted out come first where there is no room for all.
func TestApplyToAFullMap(t *testing.T) {
	f := newFake(2)
	want := Table{Workloads: map[uint64]bpf.Workload{1: in("192.0.2.1", ""), 2: in("192.0.2.2", ""), 8: out("", ""), 9: out("", "")}, Control: bpf.ControlOptOut}
	now, _ := f.Read()
	_, err := apply(f, &now, want)
	if !isFull(err) || !f.optedOut(8) || !f.optedOut(9) {
		t.Errorf("%v, %+v", err, f.table)
	}
}
