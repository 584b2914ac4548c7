package writer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// countingKernel counts the grace periods.
type countingKernel struct {
	*nat.Kernel
	graces atomic.Int64
}

func (k *countingKernel) Synchronize() error {
	k.graces.Add(1)
	return k.Kernel.Synchronize()
}

// crowd is a writer on the kernel's maps, with many Services.
type crowd struct {
	t     testing.TB
	lab   *lab.Lab
	maps  *bpf.Maps
	store *countingKernel
	w     *Writer
	has   map[string][]services.Port
	room  chan struct{}
}

func newCrowd(t testing.TB) *crowd {
	t.Helper()
	l := lab.New(t)
	m, err := bpf.EnsureMaps(bpf.PinsBelow(l.BPFFS), bpf.Sizes{Frontends: 8192, Services: 8192, Backends: 65536})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	c := &crowd{t: t, lab: l, maps: m, store: &countingKernel{Kernel: nat.NewKernel(m, bpf.Features(lab.KernelFeatures()))}, has: map[string][]services.Port{}, room: make(chan struct{}, 100)}
	c.w = New(Config{
		Store: c.store, Log: slog.New(slog.DiscardHandler),
		Lock:   func(context.Context) (func() error, error) { return func() error { return nil }, nil },
		Notify: func() { c.room <- struct{}{} },
	})
	t.Cleanup(c.w.Close)
	return c
}

func (c *crowd) set(name string, ports ...services.Port) {
	setService(c.w, c.has, name, ports)
}

func (c *crowd) flush() {
	c.t.Helper()
	if err := c.w.Flush(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	for c.w.Deferred() {
		<-c.room
		if err := c.w.Flush(context.Background()); err != nil {
			c.t.Fatal(err)
		}
	}
}

func numbered(n int) string { return fmt.Sprintf("10.97.%d.%d:80", n/250, n%250+1) }

// BenchmarkWriterFrontendsOf1000Services rewrites the frontends of 1,000 Services in
// one flush, while the endpoints of another one change: how long does that wait?
func BenchmarkWriterFrontendsOf1000Services(b *testing.B) {
	c := newCrowd(b)
	sticky := false
	all := func() {
		for i := range 1000 {
			p := web(numbered(i), "192.0.2.1:80", "192.0.2.2:80")
			p.Sticky = sticky
			c.set(fmt.Sprint("s", i), p)
		}
	}
	urgent := func(n int) { c.set("urgent", web("10.98.0.1:80", fmt.Sprintf("192.0.2.%d:80", n%200+1))) }
	all()
	urgent(0)
	c.flush()
	b.ResetTimer()
	c.store.graces.Store(0)
	var flushes, waits time.Duration
	for i := range b.N {
		sticky = !sticky
		all()
		began := make(chan struct{})
		done := make(chan time.Duration)
		go func() {
			close(began)
			start := time.Now()
			c.flush()
			done <- time.Since(start)
		}()
		<-began
		time.Sleep(time.Millisecond) // so that the change comes while the frontends are written
		start := time.Now()
		urgent(i + 1)
		c.flush()
		waits += time.Since(start)
		flushes += <-done
	}
	b.ReportMetric(float64(flushes.Microseconds())/1000/float64(b.N), "ms/flush")
	b.ReportMetric(float64(waits.Microseconds())/1000/float64(b.N), "ms/urgent")
	b.ReportMetric(float64(c.store.graces.Load())/float64(b.N), "graces/op")
}

// BenchmarkWriterEndpointsWhileServicesChange changes the endpoints of a Service
// together with one that comes, just after another went.
func BenchmarkWriterEndpointsWhileServicesChange(b *testing.B) {
	c := newCrowd(b)
	c.set("s0", web(numbered(0), "192.0.2.1:80"))
	c.flush()
	var waits time.Duration
	for i := range b.N {
		c.set(fmt.Sprint("s", i))
		c.flush()
		c.set(fmt.Sprint("s", i+1), web(numbered((i+1)%1000), "192.0.2.1:80"))
		c.set("urgent", web("10.98.0.1:80", fmt.Sprintf("192.0.2.%d:80", i%200+1)))
		start := time.Now()
		if err := c.w.Flush(context.Background()); err != nil {
			b.Fatal(err)
		}
		waits += time.Since(start)
		c.flush()
	}
	b.ReportMetric(float64(waits.Microseconds())/1000/float64(b.N), "ms/urgent")
}

// attach lets the programs serve the lab's cgroup.
func (c *crowd) attach() {
	c.t.Helper()
	must := func(err error) {
		if err != nil {
			c.t.Helper()
			c.t.Fatal(err)
		}
	}
	b, f := bpf.Balancer{UDP: true}, bpf.Features(lab.KernelFeatures())
	progs, err := bpf.LoadPrograms(c.maps, b, f)
	must(err)
	dir, err := os.Open(c.lab.Cgroup)
	must(err)
	defer dir.Close()
	for _, h := range b.Hooks(f) {
		p := progs[h.Name]
		defer p.Close()
		must(link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: h.Attach, Flags: unix.BPF_F_ALLOW_MULTI}))
	}
}

// echoes starts servers of a kind, and gives their addresses.
func (c *crowd) echoes(kind, prefix string, n int) (out []string) {
	c.t.Helper()
	return c.echoesAt(kind, prefix, n, 8080)
}

func (c *crowd) echoesAt(kind, prefix string, n, port int) (out []string) {
	c.t.Helper()
	for i := range n {
		addr := netip.MustParseAddrPort(fmt.Sprintf("%s.%d:%d", prefix, i+1, port))
		if err := c.lab.AddAddr(addr.Addr().String() + "/32"); err != nil {
			c.t.Fatal(err)
		}
		e, err := standin.StartTCPEcho(c.lab, fmt.Sprintf("%s-%d", kind, i), addr)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(e.Close)
		out = append(out, addr.String())
	}
	return out
}

// Clients connect in a loop to a few of 1,000 Services, whose frontends all change in one flush after the other: sticky or
// not, with a Local policy or without, and each taken over by another Service, whose index others had before. No connect
// may fail, and none may reach a server of the other half.
func TestWriterChangesFrontendsUnderLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const all = 1000
	client := clients.Build(t)
	c := newCrowd(t)
	kinds := [2][]string{c.echoes("own", "192.0.2", 4), c.echoes("other", "198.51.100", 4)}
	c.attach()
	round := func(n int) {
		for i := range all {
			backends := kinds[i%2]
			p := web(numbered(i), backends[n%2:]...)
			p.Sticky = n%3 == 1
			if n%4 == 2 {
				p.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{p.Frontends[0]: bpf.FrontendLocalPolicy}
				p.Local = p.Backends[1:]
			}
			if n%4 == 3 { // all go, and come as others
				c.set(fmt.Sprintf("s%d-%d", i, n/4))
				c.set(fmt.Sprintf("s%d-%d", i, n/4+1), p)
			} else {
				c.set(fmt.Sprintf("s%d-%d", i, n/4), p)
			}
		}
		c.flush()
	}
	round(0)
	var hammers []*clients.Hammer
	for i, do := range []clients.OnConnect{clients.Echo, clients.AwaitClose, clients.Echo} {
		hammers = append(hammers, clients.StartHammer(t, c.lab, client, clients.HammerConfig{Addr: numbered(i * 400), Workers: 16, Do: do}))
	}
	rounds := 1
	for end := time.Now().Add(3 * time.Second); rounds < 13 || time.Now().Before(end); rounds++ {
		round(rounds)
	}
	for _, h := range hammers {
		r := h.Stop()
		if len(r.Failures) > 0 || r.Connects < 100 {
			t.Errorf("%d connects, failures: %v", r.Connects, r.Failures)
		}
		for server, n := range r.Servers {
			if !strings.HasPrefix(server, "own-") {
				t.Errorf("%d connections reached %q, which is another Service's", n, server)
			}
		}
		t.Logf("%d connects, slowest %s, to %v", r.Connects, r.Slowest, r.Servers)
	}
	if st := c.w.Status(); len(st.Out) > 0 || st.Repairs > 0 {
		t.Errorf("%d are out, %d repairs: %+v", len(st.Out), st.Repairs, st.Out[:min(3, len(st.Out))])
	}
	c.w.reclaimer.drain()
	if repaired, err := c.w.Verify(t.Context()); repaired || err != nil {
		t.Errorf("repaired: %v, %v", repaired, err)
	}
	s, err := c.store.Read()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Indexes()) != all || len(s.Sets) < all || len(s.Sets) > 2*all || slices.Max(s.Indexes()) > 1024+3*all {
		t.Errorf("%d indexes up to %d, %d sets", len(s.Indexes()), slices.Max(s.Indexes()), len(s.Sets))
	}
	t.Logf("%d rounds, %d grace periods", rounds, c.store.graces.Load())
}
