package natinit

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// What the tests' node serves.
const (
	vip4, vip6 = "10.96.0.1:443", "[fd00:96::1]:443" // TCP, to port 6443 of the backends
	dns4, dns6 = "10.96.0.10:53", "[fd00:96::10]:53" // UDP, to port 5353 of the backends
	backends   = 3
)

// node is a lab with backends in it, and the state of an instance.
type node struct {
	l      *lab.Lab
	pins   bpf.Pins
	cgroup string
}

// newNode starts echo backends on 192.0.2.11 to 13 and 2001:db8::11 to 13, over TCP and UDP.
func newNode(t testing.TB) *node {
	t.Helper()
	l := lab.New(t)
	for i := range backends {
		for _, a := range []netip.Addr{backend4(i), backend6(i)} {
			must(t, l.AddAddr(netip.PrefixFrom(a, a.BitLen()).String()))
			name := fmt.Sprintf("backend-%d", i)
			e, err := standin.StartTCPEcho(l, name, netip.AddrPortFrom(a, 6443))
			must(t, err)
			t.Cleanup(e.Close)
			u, err := standin.StartUDPEcho(l, name, netip.AddrPortFrom(a, 5353))
			must(t, err)
			t.Cleanup(u.Close)
		}
	}
	return &node{l: l, pins: bpf.PinsBelow(l.BPFFS), cgroup: l.Cgroup}
}

func backend4(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}) }
func backend6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 11+i))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// services are all four, each with the given ones of the backends.
func services(which ...int) []nat.Service {
	return []nat.Service{
		service("api4", bpf.TCP, vip4, 6443, backend4, which),
		service("api6", bpf.TCP, vip6, 6443, backend6, which),
		service("dns4", bpf.UDP, dns4, 5353, backend4, which),
		service("dns6", bpf.UDP, dns6, 5353, backend6, which),
	}
}

func service(name string, p bpf.Proto, vip string, port uint16, addr func(int) netip.Addr, which []int) nat.Service {
	front := netip.MustParseAddrPort(vip)
	s := nat.Service{
		Name: name, Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(front, p)}, VIPs: []netip.Addr{front.Addr()}, Sticky: p == bpf.UDP,
	}
	for _, i := range which {
		s.Backends = append(s.Backends, netip.AddrPortFrom(addr(i), port))
	}
	return s
}

// allFeatures are those of the running kernel: everything from Linux 6.1 on.
func allFeatures() bpf.Features { return bpf.Features(lab.KernelFeatures()) }

// helpers are the features that make other programs. Which of them a kernel has differs.
func helpers(f *bpf.Features) { f.SetRetval, f.NetnsCookie = false, false }

// best is how programs are attached with all features.
func best() attach.By {
	if allFeatures().Link {
		return attach.ByLink
	}
	return attach.ByProg
}

func without(drop func(*bpf.Features)) bpf.Features {
	f := allFeatures()
	drop(&f)
	return f
}

// run is one init stage: what it seeded and attached, neither committed nor taken back.
type run struct {
	seeded   *Seeded
	attached *attach.Attached
}

func (n *node) seedConfig(f bpf.Features, svcs []nat.Service) SeedConfig {
	return SeedConfig{Pins: n.pins, Sizes: bpf.Sizes{Frontends: 256, Services: 2048, Backends: 256}, Features: f, Services: svcs}
}

func (n *node) attachConfig(m *bpf.Maps, f bpf.Features, b bpf.Balancer) attach.Config {
	return attach.Config{
		Pins: n.pins, Target: attach.Cgroup{Path: n.cgroup, ID: cgroupID(n.cgroup), Links: f.Link},
		Programs: attach.Balancer{Balancer: b, Maps: m, Features: f},
	}
}

func (n *node) remove() error {
	return Remove(attach.Config{Pins: n.pins, Target: attach.Cgroup{Path: n.cgroup}})
}

// begin seeds and attaches.
func (n *node) begin(f bpf.Features, b bpf.Balancer, svcs []nat.Service) (*run, error) {
	s, err := Seed(n.seedConfig(f, svcs))
	if err != nil {
		return nil, err
	}
	cfg := n.attachConfig(s.Maps, f, b)
	err = s.Recover(cfg, cfg.Programs.(attach.Balancer))
	var a *attach.Attached
	if err == nil {
		a, err = attach.Attach(n.attachConfig(s.Maps, f, b))
	}
	if err != nil {
		_ = s.Rollback()
		s.Close()
		return nil, err
	}
	return &run{s, a}, nil
}

// changed reports whether the run attached anything.
func (r *run) changed() bool {
	return slices.ContainsFunc(r.attached.Hooks, func(h attach.Result) bool { return h.Change != attach.Kept })
}

func (r *run) commit(t testing.TB) {
	t.Helper()
	must(t, r.attached.Commit())
	must(t, r.seeded.Commit())
	r.close(t)
}

func (r *run) rollback(t testing.TB) {
	t.Helper()
	must(t, r.attached.Rollback())
	must(t, r.seeded.Rollback())
	r.close(t)
}

func (r *run) close(t testing.TB) {
	t.Helper()
	must(t, r.attached.Close())
	must(t, r.seeded.Close())
}

func (n *node) mustBegin(t testing.TB, f bpf.Features, b bpf.Balancer, svcs []nat.Service) *run {
	t.Helper()
	r, err := n.begin(f, b, svcs)
	must(t, err)
	return r
}

// up runs a whole init stage.
func (n *node) up(t testing.TB, f bpf.Features, b bpf.Balancer, svcs []nat.Service) {
	t.Helper()
	n.mustBegin(t, f, b, svcs).commit(t)
}

// snapshot is everything of an instance that a second run must not change.
type snapshot struct {
	Pins     map[string]string           // path -> kind and id
	Attached map[string][]ebpf.ProgramID // by hook, in the order of running
	Table    *nat.State
}

func (n *node) snapshot(t testing.TB) snapshot {
	t.Helper()
	s := snapshot{Pins: map[string]string{}, Attached: attachedTo(t, n.cgroup)}
	must(t, filepath.WalkDir(n.l.BPFFS, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			s.Pins[path] = describePin(path)
		}
		return err
	}))
	if m, err := bpf.OpenMaps(n.pins, true); err == nil {
		defer m.Close()
		s.Table, err = nat.NewKernel(m, allFeatures()).Read()
		must(t, err)
	}
	return s
}

func describePin(path string) string {
	if m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}); err == nil {
		defer m.Close()
		info, _ := m.Info()
		id, _ := info.ID()
		return fmt.Sprint("map ", id)
	}
	if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer p.Close()
		info, _ := p.Info()
		id, _ := info.ID()
		return fmt.Sprint("program ", id)
	}
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		info, _ := l.Info()
		return fmt.Sprintf("link %d of program %d", info.ID, info.Program)
	}
	return "directory"
}

// attachedTo lists the programs of every hook that has some, ours or not.
func attachedTo(t testing.TB, cgroup string) map[string][]ebpf.ProgramID {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	out := map[string][]ebpf.ProgramID{}
	for _, h := range bpf.Hooks() {
		if !h.AvailableWith(allFeatures()) {
			continue // the kernel says EINVAL
		}
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.Attach})
		must(t, err)
		for _, p := range q.Programs {
			out[h.Name] = append(out[h.Name], p.ID)
		}
	}
	return out
}

// wantSame compares all but the generation, which only grows.
func (s snapshot) wantSame(t testing.TB, now snapshot) {
	t.Helper()
	if diff := cmp.Diff(s, now, cmpopts.IgnoreFields(nat.State{}, "Generation")); diff != "" {
		t.Errorf("something changed, from - to +:\n%s", diff)
	}
}

// wantOnce asks that every hook which is needed has one program of ours, and no other hook has any.
func (n *node) wantOnce(t testing.TB, f bpf.Features, b bpf.Balancer, by attach.By) {
	t.Helper()
	m, err := bpf.OpenMaps(n.pins, true)
	must(t, err)
	defer m.Close()
	states, err := attach.Inspect(n.pins, m, n.cgroup)
	must(t, err)
	needed := map[string]bool{}
	for _, h := range b.Hooks(f) {
		needed[h.Name] = true
	}
	ids := attachedTo(t, n.cgroup)
	for _, st := range states {
		if st.Attached != needed[st.Hook] || st.Attached && st.By != by {
			t.Errorf("%s: attached %v by %q, want %v by %q", st.Hook, st.Attached, st.By, needed[st.Hook], by)
		}
		if own := len(ids[st.Hook]) - len(st.Foreign); own > 1 {
			t.Errorf("%s has %d programs of ours", st.Hook, own)
		}
	}
}

func cgroupID(dir string) uint64 {
	id, err := lab.CgroupID(dir)
	if err != nil {
		panic(err)
	}
	return id
}
