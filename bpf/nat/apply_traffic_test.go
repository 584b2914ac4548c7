package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// attach lets the programs serve the lab's cgroup.
func attach(t testing.TB, l *lab.Lab, m *bpf.Maps) {
	t.Helper()
	b, f := bpf.Balancer{UDP: true}, bpf.Features(lab.KernelFeatures())
	progs, err := bpf.LoadPrograms(m, b, f)
	must(t, err)
	dir, err := os.Open(l.Cgroup)
	must(t, err)
	defer dir.Close()
	for _, h := range b.Hooks(f) {
		p := progs[h.Name]
		defer p.Close()
		if !f.Link { // it stays until the cgroup goes
			must(t, link.RawAttachProgram(link.RawAttachProgramOptions{
				Target: int(dir.Fd()), Program: p, Attach: h.Attach, Flags: unix.BPF_F_ALLOW_MULTI,
			}))
			continue
		}
		at, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: p, Attach: h.Attach})
		must(t, err)
		t.Cleanup(func() { at.Close() })
	}
}

// startBackends starts echo servers, named by their kind and number, on addresses of their own.
func startBackends(t testing.TB, l *lab.Lab, kind string, prefix string, n int) []netip.AddrPort {
	t.Helper()
	var out []netip.AddrPort
	for i := range n {
		addr := netip.MustParseAddrPort(fmt.Sprintf("%s.%d:6443", prefix, i+1))
		must(t, l.AddAddr(addr.Addr().String()+"/32"))
		e, err := standin.StartTCPEcho(l, fmt.Sprintf("%s-%d", kind, i), addr)
		must(t, err)
		t.Cleanup(e.Close)
		out = append(out, addr)
	}
	return out
}

// 64 clients connect in a loop while the sets behind the VIP, and those of a second Service in the same table, change as
// fast as they can. No connect may fail, and none may reach a server that this Service never had: not those of the
// second Service, whose sets get the memory that this one's set free.
func TestApplyFailsNoConnectWhileBackendsChange(t *testing.T) {
	client := clients.Build(t)
	for name, f := range waysToWrite() {
		t.Run(name, func(t *testing.T) {
			l := lab.New(t)
			own := startBackends(t, l, "own", "192.0.2", 6)
			others := startBackends(t, l, "other", "198.51.100", 6)
			m, err := bpf.EnsureMaps(bpf.PinsBelow(l.BPFFS), bpf.Sizes{Frontends: 64, Services: 64, Backends: 256})
			must(t, err)
			t.Cleanup(func() { m.Close() })
			k := NewKernel(m, f)
			second := Service{Name: "second", Frontends: []bpf.FrontendKey{tcp("10.96.0.2:443")}, Backends: others}
			first := kubernetes()
			first.Backends = own
			ensure(t, k, InitIndexes, first, second)
			attach(t, l, m)

			hammers := []*clients.Hammer{
				startHammer(t, l, client, clients.Echo),
				startHammer(t, l, client, clients.AwaitClose),
			}
			changes := changeUntil(t, k, first, second, time.Now().Add(2*time.Second))
			for i, h := range hammers {
				checkHammered(t, h.Stop(), i == 0)
			}
			t.Logf("%d changes", changes)
			checkWhole(t, mustRead(t, k))
		})
	}
}

func startHammer(t testing.TB, l *lab.Lab, client string, do clients.OnConnect) *clients.Hammer {
	return clients.StartHammer(t, l, client, clients.HammerConfig{Addr: "10.96.0.1:443", Workers: 32, Do: do})
}

// changeUntil gives both services random sets, one of them grown by Rollback and failed writes, and counts the changes.
func changeUntil(t testing.TB, k *Kernel, first, second Service, deadline time.Time) (changes int) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from []netip.AddrPort) []netip.AddrPort {
		var out []netip.AddrPort
		for _, i := range r.Perm(len(from))[:1+r.IntN(len(from)-1)] {
			out = append(out, from[i])
		}
		return out
	}
	own, others := first.Backends, second.Backends
	for ; changes < 20 || time.Now().Before(deadline); changes++ { // an emulated machine may be slow
		first.Backends, second.Backends = pick(own), pick(others)
		plan := planFor(t, k, InitIndexes, first, second)
		applied, err := Apply(k, plan)
		must(t, err)
		if r.IntN(4) == 0 {
			must(t, applied.Rollback())
		} else {
			must(t, applied.Commit())
		}
	}
	return changes
}

func checkHammered(t testing.TB, r clients.Hammered, echo bool) {
	t.Helper()
	if len(r.Failures) > 0 {
		t.Errorf("%d connects, failures: %v", r.Connects, r.Failures)
	}
	if r.Connects < 200 {
		t.Errorf("only %d connects: nothing was tested", r.Connects)
	}
	for server, n := range r.Servers {
		if !strings.HasPrefix(server, "own-") {
			t.Errorf("%d connections reached %q, which this service never had", n, server)
		}
	}
	if echo && len(r.Servers) < 2 {
		t.Errorf("all connections went to %v", r.Servers)
	}
	t.Logf("%d connects, slowest %s, to %v", r.Connects, r.Slowest, r.Servers)
}
