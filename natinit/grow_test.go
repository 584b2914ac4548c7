package natinit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// opened is a table and its attachment as a runtime has them.
type opened struct {
	attach.Config
	attach.Balancer
}

func (n *node) open(t testing.TB, f bpf.Features) opened {
	t.Helper()
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	cfg := n.attachConfig(m, f, bpf.Balancer{UDP: true})
	return opened{cfg, cfg.Programs.(attach.Balancer)}
}

func sizesOf(m *bpf.Maps) bpf.Sizes {
	return bpf.Sizes{Frontends: m.Map(bpf.MapFrontend).MaxEntries(), Services: m.Services(), Backends: m.Map(bpf.MapBackend).MaxEntries()}
}

func TestGrowWhileTheTableServes(t *testing.T) {
	for name, f := range map[string]bpf.Features{"with everything": allFeatures(), "on the floor": {}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			p := goClient(t)
			done := make(chan []clients.Exchange)
			for _, w := range waysToVIP() {
				go func() { done <- p.Run(t, n.l, w.mode, w.vip, "hello", append(w.options(), clients.Count(400))...) }()
			}
			cfg := n.open(t, f)
			for range 3 {
				sizes := sizesOf(cfg.Maps)
				want := bpf.Sizes{Frontends: sizes.Frontends * 2, Services: sizes.Services * 2, Backends: sizes.Backends * 2}
				grown, err := Grow(cfg.Config, cfg.Balancer, want)
				must(t, err)
				cfg.Maps.Close()
				if got := sizesOf(grown); got != want {
					t.Errorf("grew to %+v, want %+v", got, want)
				}
				cfg.Maps = grown
				p := nat.NewPlanner(mustReadMaps(t, grown, f), nat.InitIndexes) // and goes on to be written to
				must(t, p.Ensure(services(0, 1)[0]))
				applied, err := nat.Apply(nat.NewKernel(grown, f), p.Plan())
				must(t, err)
				must(t, applied.Commit())
			}
			cfg.Maps.Close()
			for range waysToVIP() {
				for _, e := range <-done {
					if e.Error != "" || e.Server() == "" {
						t.Fatalf("an exchange failed: %+v", e)
					}
				}
			}
			// The next init finds all as it should be.
			r, err := n.begin(f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			must(t, err)
			if r.changed() {
				t.Errorf("attached anew: %+v", r.attached.Hooks)
			}
			r.commit(t)
			n.checkWay(t, f, p, waysToVIP()[0])
		})
	}
}

func mustReadMaps(t testing.TB, m *bpf.Maps, f bpf.Features) *nat.State {
	t.Helper()
	s, err := nat.NewKernel(m, f).Read()
	must(t, err)
	return s
}

// Killed after the programs were exchanged and before the pins were: the next run brings both together.
func TestGrowThatIsKilledIsRepaired(t *testing.T) {
	f := allFeatures()
	n := newNode(t)
	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	cfg := n.open(t, f)
	defer cfg.Maps.Close()
	grown, err := cfg.Maps.Grow(bpf.Sizes{Frontends: 1024, Services: 4096, Backends: 1024})
	must(t, err)
	must(t, nat.Fill(nat.NewKernel(grown, f), mustReadMaps(t, cfg.Maps, f)))
	a, err := attach.Attach(n.attachConfig(grown, f, bpf.Balancer{UDP: true}))
	must(t, err)
	p := goClient(t)
	n.checkWay(t, f, p, waysToVIP()[0])
	must(t, a.Close())
	must(t, grown.Close())

	n.up(t, f, bpf.Balancer{UDP: true}, services(1))
	for _, w := range waysToVIP() {
		if got := servers(t, p, n.l, w, 2); len(got) != 1 || !got["backend-1"] {
			t.Errorf("%s: answered by %v: the programs don't see what is written", w.name, got)
		}
	}
}

// TestGrowThatFailsGoesBack: whichever step fails, programs, pins and the table that is written to are one.
func TestGrowThatFailsGoesBack(t *testing.T) {
	larger := bpf.Sizes{Frontends: 1024, Services: 4096, Backends: 1024, SourceRanges: 1 << 17}
	const programInTheWay = "a program is in the way"
	inTheWay := func(path string) func(*testing.T, *node) func() {
		return func(t *testing.T, n *node) func() {
			path := filepath.Join(n.pins.Dir, path)
			former := ""
			if _, err := os.Lstat(path); err == nil {
				former = path + "_former"
				must(t, os.Rename(path, former))
			}
			must(t, os.Mkdir(path, 0o700))
			return func() {
				must(t, os.Remove(path))
				if former != "" {
					must(t, os.Rename(former, path))
				}
			}
		}
	}
	failures := map[string]func(*testing.T, *node) (undo func()){
		programInTheWay: inTheWay("progs/connect6"),
	}
	if allFeatures().Link {
		failures["a link is in the way"] = inTheWay("links/connect6")
	}
	for _, name := range []bpf.MapName{bpf.MapFrontend, bpf.MapService, bpf.MapBackend, bpf.MapSourceRange, bpf.MapCounter} {
		failures["the pin of "+string(name)+" cannot be staged"] = func(t *testing.T, n *node) func() {
			path := n.pins.Map(name) + "_new" // not empty, so that it is not removed as left over
			must(t, os.MkdirAll(path+"/x", 0o700))
			return func() { must(t, os.RemoveAll(path)) }
		}
		failures["the pin of "+string(name)+" cannot be moved"] = inTheWay("maps/" + name.Info().Pin())
	}
	for name, fail := range failures {
		t.Run(name, func(t *testing.T) {
			f := allFeatures()
			f.Link = f.Link && name != programInTheWay
			n := newNode(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0))
			cfg := n.open(t, f)
			defer cfg.Maps.Close()
			before := programsOf(t, n)
			undo := fail(t, n)
			got, err := Grow(cfg.Config, cfg.Balancer, larger)
			if err == nil || got != cfg.Maps {
				t.Errorf("got another table, or no error: %v", err)
			}
			undo()
			if after := programsOf(t, n); !maps.Equal(before, after) {
				t.Errorf("the programs are %v, were %v", after, before)
			}
			for _, name := range bpf.MapNames() {
				if same, err := bpf.PinLeadsTo(n.pins, name, cfg.Maps.Map(name)); err != nil || !same {
					t.Errorf("the pin of %s leads elsewhere: %v", name, err)
				}
				if _, err := os.Lstat(n.pins.Map(name) + "_new"); err == nil {
					t.Errorf("a pin of the new %s is left", name)
				}
			}
			// What is written is read.
			p := nat.NewPlanner(mustReadMaps(t, cfg.Maps, f), nat.InitIndexes)
			must(t, p.Ensure(services(1)[0]))
			applied, err := nat.Apply(nat.NewKernel(cfg.Maps, f), p.Plan())
			must(t, err)
			must(t, applied.Commit())
			w := waysToVIP()[0]
			if got := servers(t, goClient(t), n.l, w, 2); len(got) != 1 || !got["backend-1"] {
				t.Errorf("%s: answered by %v", w.name, got)
			}
			grown, err := Grow(cfg.Config, cfg.Balancer, larger) // and the next attempt succeeds
			must(t, err)
			if got, want := sizesOf(grown), (bpf.Sizes{Frontends: 1024, Services: 4096, Backends: 1024}); got != want {
				t.Errorf("grew to %+v, want %+v", got, want)
			}
			must(t, grown.Close())
		})
	}
}

// programsOf are the attached programs by hook.
func programsOf(t testing.TB, n *node) map[string]ebpf.ProgramID {
	t.Helper()
	m, err := bpf.OpenMaps(n.pins, true)
	if err != nil { // with a pin in the way
		m = nil
	} else {
		defer m.Close()
	}
	states, err := attach.Inspect(n.pins, m, n.l.Cgroup)
	must(t, err)
	out := map[string]ebpf.ProgramID{}
	for _, s := range states {
		out[s.Hook] = s.Program
	}
	return out
}

// TestGrowTakesRangesAlong: a trie that grows has what the former one had, and nothing else is copied.
func TestGrowTakesRangesAlong(t *testing.T) {
	f := allFeatures()
	n := newNode(t)
	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	cfg := n.open(t, f)
	key := bpf.SourceRangeKeyOf(7, netip.MustParsePrefix("192.0.2.0/24"))
	must(t, cfg.Maps.Map(bpf.MapSourceRange).Put(key, uint8(0)))
	grown, err := Grow(cfg.Config, cfg.Balancer, bpf.Sizes{SourceRanges: 1 << 17})
	must(t, err)
	defer grown.Close()
	cfg.Maps.Close()
	if got := grown.Map(bpf.MapSourceRange).MaxEntries(); got != 1<<17 {
		t.Errorf("the trie has %d entries", got)
	}
	if s := mustReadMaps(t, grown, f); !s.SourceRanges[key] || len(s.Frontends) == 0 {
		t.Errorf("%+v", s)
	}
}

// watched starts a child that makes sockets and asks for their names; the returned function ends it.
func (n *node) watched(t *testing.T) (end func() named) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := n.l.Command(t.Context(), exe, dns4, vip4)
	cmd.Env = append(os.Environ(), childEnv+"=names")
	in, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); line != "begins\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return func() (r named) {
		t.Helper()
		must(t, in.Close())
		must(t, json.NewDecoder(out).Decode(&r))
		must(t, cmd.Wait())
		return r
	}
}

// wantAllNamed asks that nothing was wrong with the sockets that a child watched, and that all is attached as it should be.
func (n *node) wantAllNamed(t *testing.T, f bpf.Features, r named) {
	t.Helper()
	t.Logf("%d sockets, %d datagrams", r.Made, r.Asked)
	if len(r.Wrong) > 0 {
		t.Errorf("not as it should be: %v", r.Wrong)
	}
	again, err := n.begin(f, bpf.Balancer{UDP: true}, services(0, 1, 2))
	must(t, err)
	if again.changed() {
		t.Errorf("attached anew: %+v", again.attached.Hooks)
	}
	again.commit(t)
}

// TestGrowKeepsSockets: while the maps of sockets grow, each socket has its Service's name and each session its backend at
// every instant.
func TestGrowKeepsSockets(t *testing.T) {
	for name, f := range map[string]bpf.Features{"with everything": allFeatures(), "without bpf_link": without(func(f *bpf.Features) { f.Link = false })} {
		t.Run(name, func(t *testing.T) {
			lab.NeedsLinux(t, 5, 8, "the hook getpeername, by which a socket's name is seen")
			n := newNode(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			end := n.watched(t)
			cfg := n.open(t, f)
			for range 3 {
				sizes := bpf.Sizes{
					UDPSockets:  2 * cfg.Maps.Map(bpf.MapUDPSockRevNat).MaxEntries(),
					UDPSessions: 2 * cfg.Maps.Map(bpf.MapUDPSockAffinity).MaxEntries(),
					TCPSockets:  2 * cfg.Maps.Map(bpf.MapSockRevNat).MaxEntries(),
				}
				grown, err := Grow(cfg.Config, cfg.Balancer, sizes)
				must(t, err)
				must(t, cfg.Maps.Close())
				cfg.Maps = grown
				if got := grown.Map(bpf.MapUDPSockRevNat).MaxEntries(); got != sizes.UDPSockets {
					t.Errorf("grew to %d entries, want %d", got, sizes.UDPSockets)
				}
			}
			must(t, cfg.Maps.Close())
			n.wantAllNamed(t, f, end())
		})
	}
}

// firstHooks are programs of which only the first few are attached: who attached them was killed then.
type firstHooks struct {
	attach.Balancer
	n int
}

func (p firstHooks) Hooks() []bpf.Hook { return p.Balancer.Hooks()[:p.n] }

// beginGrowth does what Grow does until it is killed with the programs of n hooks exchanged, or, with all of them, after it
// has moved the pins.
func (n *node) beginGrowth(t *testing.T, f bpf.Features, sizes bpf.Sizes, hooks int, installed bool) {
	t.Helper()
	cfg := n.open(t, f)
	defer cfg.Maps.Close()
	grown, err := cfg.Maps.Grow(sizes)
	must(t, err)
	defer grown.Close()
	must(t, grown.Stage(n.pins))
	differ, err := grown.Outgrow(cfg.Maps)
	must(t, err)
	if !differ {
		t.Fatal("nothing of sockets grows")
	}
	b := cfg.Balancer
	b.Maps = grown
	cfg.Config.Programs = firstHooks{b, hooks}
	a, err := attach.Attach(cfg.Config)
	must(t, err)
	if installed {
		must(t, cfg.Maps.CopySockets(grown, f, false))
		must(t, grown.Install(n.pins, cfg.Maps))
	}
	must(t, a.Close())
}

// TestGrowThatIsKilledKeepsSockets: wherever it ends, the next init knows all sockets, also those that the smaller maps have
// no room for.
func TestGrowThatIsKilledKeepsSockets(t *testing.T) {
	f := allFeatures()
	all := len(bpf.Balancer{UDP: true}.Hooks(f))
	for _, installed := range []bool{false, true} {
		t.Run(fmt.Sprintf("pins installed %v", installed), func(t *testing.T) {
			n := newNode(t)
			const small, made = 16, 40
			m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{UDPSockets: small, UDPSessions: small})
			must(t, err)
			must(t, m.Close())
			n.up(t, f, bpf.Balancer{UDP: true}, services(0))
			note := func(m *bpf.Maps, cookie uint32) {
				must(t, m.Map(bpf.MapUDPSockRevNat).Put(bpf.UDPRevNatKey{Cookie: uint64(cookie)}, bpf.UDPRevNat{Index: cookie}))
				must(t, m.Map(bpf.MapUDPSockAffinity).Put(bpf.SockAffinityKey{Cookie: uint64(cookie)}, bpf.SockAffinity{ID: cookie}))
				must(t, m.Map(bpf.MapSockRevNat).Put(cookie, bpf.SockRevNat{Cookie: uint64(cookie)}))
			}
			cfg := n.open(t, f)
			for i := range uint32(small) {
				note(cfg.Maps, i+1)
			}
			must(t, cfg.Maps.Close())
			n.beginGrowth(t, f, bpf.Sizes{UDPSockets: 4 * small, UDPSessions: 4 * small, TCPSockets: 1 << 19}, all, installed)
			progs, err := attach.PinnedPrograms(n.pins)
			must(t, err)
			cfg = n.open(t, f)
			used, err := cfg.Maps.OutgrownBy(progs)
			must(t, err)
			attach.CloseAll(progs)
			if installed {
				must(t, used.Close())
				used = cfg.Maps
			}
			for i := uint32(small); i < made; i++ {
				note(used, i+1)
			}
			must(t, cfg.Maps.Close())
			must(t, used.Close())

			n.up(t, f, bpf.Balancer{UDP: true}, services(0))
			cfg = n.open(t, f)
			defer cfg.Maps.Close()
			for i := range uint32(made) {
				cookie := i + 1
				var way bpf.UDPRevNat
				var kept bpf.SockAffinity
				var tcp bpf.SockRevNat
				err := errors.Join(
					cfg.Maps.Map(bpf.MapUDPSockRevNat).Lookup(bpf.UDPRevNatKey{Cookie: uint64(cookie)}, &way),
					cfg.Maps.Map(bpf.MapUDPSockAffinity).Lookup(bpf.SockAffinityKey{Cookie: uint64(cookie)}, &kept),
					cfg.Maps.Map(bpf.MapSockRevNat).Lookup(cookie, &tcp))
				if err != nil || way.Index != cookie || kept.ID != cookie || tcp.Cookie != uint64(cookie) {
					t.Errorf("socket %d: %+v, %+v, %+v, %v", cookie, way, kept, tcp, err)
				}
			}
			n.checkWay(t, f, goClient(t), waysToVIP()[0])
		})
	}
}

// TestGrowThatIsKilledAtAnyHook: while sockets come, growth after growth is killed, each at another hook, and the next init
// loses none of them.
func TestGrowThatIsKilledAtAnyHook(t *testing.T) {
	f := allFeatures()
	lab.NeedsLinux(t, 5, 8, "the hook getpeername, by which a socket's name is seen")
	n := newNode(t)
	m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{UDPSockets: bpf.MaxTCPSockets, UDPSessions: bpf.MaxTCPSockets}) // nobody sweeps what closed sockets leave
	must(t, err)
	must(t, m.Close())
	n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
	end := n.watched(t)
	for _, hooks := range []int{1, 4, 7, len(bpf.Balancer{UDP: true}.Hooks(f))} { // of the way back, of sendto(), of connect(), all
		cfg := n.open(t, f)
		sizes := bpf.Sizes{
			UDPSockets:  1<<10 + cfg.Maps.Map(bpf.MapUDPSockRevNat).MaxEntries(),
			UDPSessions: 1<<10 + cfg.Maps.Map(bpf.MapUDPSockAffinity).MaxEntries(),
			TCPSockets:  min(2*cfg.Maps.Map(bpf.MapSockRevNat).MaxEntries(), bpf.MaxTCPSockets),
		}
		must(t, cfg.Maps.Close())
		n.beginGrowth(t, f, sizes, hooks, false)
		n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
	}
	n.wantAllNamed(t, f, end())
}

// TestGrowThatIsKilledWithoutRoom: more sockets than the larger maps have room for keep a way back in the LRU hashes.
func TestGrowThatIsKilledWithoutRoom(t *testing.T) {
	f := allFeatures()
	n := newNode(t)
	m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{UDPSockets: 16, UDPSessions: 16})
	must(t, err)
	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	key := func(cookie uint64) bpf.UDPRevNatKey { return bpf.UDPRevNatKey{Cookie: cookie} }
	for cookie := range uint64(16) {
		must(t, m.Map(bpf.MapUDPSockRevNat).Put(key(cookie), bpf.UDPRevNat{}))
	}
	n.beginGrowth(t, f, bpf.Sizes{UDPSockets: 20}, len(bpf.Balancer{UDP: true}.Hooks(f)), false)
	progs, err := attach.PinnedPrograms(n.pins)
	must(t, err)
	larger, err := m.OutgrownBy(progs)
	must(t, err)
	attach.CloseAll(progs)
	for cookie := uint64(16); cookie < 36; cookie++ {
		must(t, larger.Map(bpf.MapUDPSockRevNat).Put(key(cookie), bpf.UDPRevNat{}))
	}
	must(t, errors.Join(larger.Close(), m.Close()))

	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	cfg := n.open(t, f)
	defer cfg.Maps.Close()
	for cookie := range uint64(36) {
		var v bpf.UDPRevNat
		if cfg.Maps.Map(bpf.MapUDPSockRevNat).Lookup(key(cookie), &v) != nil && cfg.Maps.Map(bpf.MapUDPRevNat).Lookup(key(cookie), &v) != nil {
			t.Errorf("socket %d has no way back", cookie)
		}
	}
}

// TestGrowWithoutMemory: a kernel that has none for the larger map leaves the table as it is.
func TestGrowWithoutMemory(t *testing.T) {
	f := allFeatures()
	n := newNode(t)
	m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{TCPSockets: 1 << 17})
	must(t, err)
	must(t, m.Close())
	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	cfg := n.open(t, f)
	defer cfg.Maps.Close()
	got, err := Grow(cfg.Config, cfg.Balancer, bpf.Sizes{TCPSockets: 1 << 31})
	if got != cfg.Maps || err == nil { // ENOMEM; on old kernels E2BIG
		t.Errorf("another table: %v; %v", got != cfg.Maps, err)
	}
}
