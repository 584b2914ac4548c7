package bpf

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/test/lab"
)

// smallSizes keep tests quick: a map of a few entries is created at once.
var smallSizes = Sizes{Frontends: 64, Services: 32, Backends: 64}

func mustEnsure(t testing.TB, pins Pins) *Maps {
	t.Helper()
	m, err := EnsureMaps(pins, smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// The lower rungs of the ladder are what old kernels get; a newer kernel must take them as well.
func TestLoadProgramsWithEveryCombinationOfFeatures(t *testing.T) {
	m := mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	for _, b := range []Balancer{{}, {UDP: true}, {HostOnly: true, HostNetns: 1}, {UDP: true, HostOnly: true, HostNetns: 4711}} {
		everyFeatures(func(f Features) {
			if b.HostOnly && !f.NetnsCookie {
				return // refused: see below
			}
			if !kernelHas(f) {
				return
			}
			progs, err := LoadPrograms(m, b, f)
			if err != nil {
				t.Errorf("%+v with %+v: %v", b, f, err)
				return
			}
			checkLoaded(t, m, b, f, progs)
		})
	}
}

// The verifier's time is most of what the programs add to the start, and grows faster than the number of instructions that it
// walks through: with 5,300 to 7,200 a program, init took 20 ms more until the first connection (a host with two
// processors, 6.18).
func TestVerifierWalksThroughLittle(t *testing.T) {
	lab.NeedsLinux(t, 5, 16, "says how many instructions were verified")
	m := mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	progs, err := LoadPrograms(m, Balancer{UDP: true}, Features(lab.KernelFeatures()))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range progs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		walked, ok := info.VerifiedInstructions()
		if !ok || walked == 0 || walked > 5000 {
			t.Errorf("%s: %d instructions, want 5,000 at most", name, walked)
		}
		t.Logf("%s: %d instructions", name, walked)
		p.Close()
	}
}

// kernelHas tells whether the running kernel has all of the features.
func kernelHas(f Features) bool {
	k := lab.KernelFeatures()
	return (k.Link || !f.Link) && (k.Batch || !f.Batch) && (k.NetnsCookie || !f.NetnsCookie) &&
		(k.GetPeername || !f.GetPeername) && (k.SetRetval || !f.SetRetval) && (k.ContextSock || !f.ContextSock)
}

func checkLoaded(t *testing.T, m *Maps, b Balancer, f Features, progs map[string]*ebpf.Program) {
	t.Helper()
	hooks := b.Hooks(f)
	if len(progs) != len(hooks) {
		t.Errorf("%+v with %+v: %d programs for %d hooks", b, f, len(progs), len(hooks))
	}
	for _, h := range hooks {
		p := progs[h.Name]
		if p == nil {
			t.Errorf("%+v with %+v: no program for %s", b, f, h.Name)
			continue
		}
		l, err := Inspect(p, m)
		if err != nil {
			t.Error(err)
		}
		if !l.Ours || l.Name != h.Program() || !b.Current(l, m, f) {
			t.Errorf("%+v with %+v: %s is loaded as %+v, which isn't current", b, f, h.Name, l)
		}
		other := b
		other.UDP = !b.UDP
		if other.Current(l, m, f) {
			t.Errorf("%+v: the program of %+v passes for current", other, b)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestHooksFollowFeaturesAndProtocols(t *testing.T) {
	names := func(b Balancer, f Features) string {
		var s []string
		for _, h := range b.Hooks(f) {
			s = append(s, h.Name)
		}
		return strings.Join(s, " ")
	}
	for _, tc := range []struct {
		name string
		b    Balancer
		f    Features
		want string
	}{
		{"all of it", Balancer{UDP: true}, allFeatures(),
			"getpeername4 getpeername6 recvmsg4 recvmsg6 sendmsg4 sendmsg6 connect4 connect6"},
		{"no getpeername hooks below 5.8", Balancer{UDP: true}, Features{}, "recvmsg4 recvmsg6 sendmsg4 sendmsg6 connect4 connect6"},
		{"TCP alone", Balancer{}, allFeatures(), "getpeername4 getpeername6 connect4 connect6"},
		{"TCP alone below 5.8", Balancer{}, Features{}, "connect4 connect6"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := names(tc.b, tc.f); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// Without the helper, every socket would be a stranger: a balancer that is attached and serves nobody.
func TestLoadProgramsNeedsNetnsCookiesForHostScope(t *testing.T) {
	m := mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	progs, err := LoadPrograms(m, Balancer{HostOnly: true, HostNetns: 1}, Features{})
	if err == nil {
		t.Fatalf("%d programs that serve nobody were loaded", len(progs))
	}
	if !strings.Contains(err.Error(), "5.7") {
		t.Errorf("%v: doesn't say since which kernel", err)
	}
}

func TestInspectKnowsOursByItsTable(t *testing.T) {
	l := lab.New(t)
	m := mustEnsure(t, PinsBelow(l.BPFFS))
	other := mustEnsure(t, Pins{Dir: filepath.Join(l.BPFFS, "other")})
	progs, err := LoadPrograms(m, Balancer{UDP: true}, Features(lab.KernelFeatures()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range progs {
		defer p.Close()
	}
	p := progs["connect4"]
	for _, tc := range []struct {
		name string
		of   *Maps
		ours bool
	}{{"its own table", m, true}, {"another instance's table", other, false}, {"no table", nil, false}} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Inspect(p, tc.of)
			if err != nil || got.Ours != tc.ours {
				t.Errorf("%+v, %v: want ours %v", got, err, tc.ours)
			}
			if !tc.ours && got.Settings != (Settings{}) {
				t.Errorf("settings of another's program: %+v", got.Settings)
			}
		})
	}
}

// What a second run decides by: any difference in what a program would do must be a difference of Build.
func TestSettingsBuildTellsEverySettingApart(t *testing.T) {
	m := mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	seen := map[uint64]string{}
	for _, b := range []Balancer{{}, {UDP: true}, {HostNetns: 1}, {HostNetns: 2}, {UDP: true, HostNetns: 1}, {HostOnly: true, HostNetns: 1}} {
		for _, f := range []Features{{}, {NetnsCookie: true}, {SetRetval: true}, {NetnsCookie: true, SetRetval: true}, {ContextSock: true}} {
			if b.HostNetns != 0 && !f.NetnsCookie {
				continue // the programs can't tell which namespace is the host's
			}
			s := b.settings(m, f)
			what := fmt.Sprintf("%+v with %+v", b, f)
			if former, ok := seen[s.Build]; ok {
				t.Errorf("%s and %s have one build", what, former)
			}
			seen[s.Build] = what
			if again := b.settings(m, f); again != s {
				t.Errorf("%s: settings differ from call to call", what)
			}
		}
	}
	// How programs are attached is nothing that they know of.
	if (Balancer{}).settings(m, Features{Link: true, Batch: true}) != (Balancer{}).settings(m, Features{}) {
		t.Error("a change of the way to attach makes other programs")
	}
}
