package sockets

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/writer"
	"github.com/firsthop/firsthop/test/lab"
)

// cpu is the processor time of this process: others disturb it less than the time on the wall.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook is what a look costs while nothing is stale, by the number of ways back.
func BenchmarkLook(b *testing.B) {
	n := newNode(b)
	m := n.sockMaps()
	have := uint64(0)
	for _, size := range []uint64{1000, 16384, 60000} {
		for ; have < size; have++ {
			vip := netip.MustParseAddrPort(vip4)
			must(b, m.RevNat[0].Put(
				bpf.UDPRevNatKey{Cookie: 1<<40 + have, Backend: bpf.AddressOf(backend4(0).Addr()), Port: bpf.PortOf(port)},
				bpf.UDPRevNat{Frontend: bpf.AddressOf(vip.Addr()), Port: bpf.PortOf(vip.Port())}))
		}
		for _, batch := range []bool{true, false} {
			b.Run(fmt.Sprintf("entries=%d/batch=%v", size, batch), func(b *testing.B) {
				r := n.reconciler(func(c *Config) { c.Maps = func() (Maps, error) { m.Batch = batch; return m, nil } })
				before := cpu(b)
				for b.Loop() {
					r.read = time.Time{} // so that all are read
					must(b, r.reconcile(b.Context()))
				}
				b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// The load of BenchmarkLoad: some pods with many connected sockets over many Services.
const (
	loadPods     = 6
	loadSockets  = 10000 // in each: a network namespace has some 28,000 ports
	loadServices = 600
	loadReplaced = 6 // Services whose backends are replaced, each time
)

func loadService(i int) types.NamespacedName { return named(fmt.Sprint("s", i)) }
func loadVIP(i int) string                   { return fmt.Sprintf("10.97.%d.%d:53", i/200, 1+i%200) }

// manySockets is a process that connects sockets to VIPs in turn, and keeps them. It says when it is done, and then, for
// each line that it reads, how many connects were refused.
func manySockets(count, first int) error {
	limit := unix.Rlimit{Cur: uint64(count) + 100, Max: uint64(count) + 100}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	refused := 0
	connect := func(fd, i int) {
		if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort(loadVIP(i%loadServices)))); err != nil {
			refused++
		}
	}
	for i := range count {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		connect(fd, first+i)
	}
	fmt.Println("connected", refused)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); { // others come and go meanwhile
		for i := range 100 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			connect(fd, i)
			unix.Close(fd)
		}
		fmt.Println("refused", refused)
	}
	return nil
}

// BenchmarkLoad is a node with 60,000 connected UDP sockets of 600 Services, of which six get other backends each second
// (600 sockets), while others come and go. It says how much of a processor this process used, reconciler and writer, and
// how long sockets were on backends that were gone.
//
//	go test -run '^$' -bench Load -benchtime 120x ./runtime/sockets
func BenchmarkLoad(b *testing.B) {
	l := lab.New(b)
	features := bpf.Features(lab.KernelFeatures())
	pins := bpf.PinsBelow(l.BPFFS)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: pins, Sizes: bpf.Sizes{Frontends: 4096, Services: 4096, Backends: 16384}, Features: features})
	must(b, err)
	defer seeded.Close()
	var st unix.Stat_t
	must(b, unix.Stat(l.Cgroup, &st))
	attached, err := attach.Attach(attach.Config{Pins: pins, Target: attach.Cgroup{Path: l.Cgroup, ID: st.Ino, Links: features.Link}, Programs: attach.Balancer{Balancer: bpf.Balancer{UDP: true}, Maps: seeded.Maps, Features: features}})
	must(b, err)
	defer attached.Close()
	must(b, attached.Commit())
	must(b, seeded.Commit())

	log := slog.New(slog.DiscardHandler)
	w := writer.New(writer.Config{Store: nat.NewKernel(seeded.Maps, features), Log: log, Lock: func(context.Context) (func() error, error) {
		return func() error { return nil }, nil
	}})
	defer w.Close()
	r := New(Config{Log: log, Namespaces: netns.Config{Host: l.Netns}, Maps: func() (Maps, error) {
		m := seeded.Maps
		return Maps{
			RevNat:   []*ebpf.Map{m.Map(bpf.MapUDPSockRevNat), m.Map(bpf.MapUDPRevNat)},
			Affinity: []*ebpf.Map{m.Map(bpf.MapUDPSockAffinity), m.Map(bpf.MapSockAffinity)},
			Log:      m.Map(bpf.MapUDPLog), Usage: m.Map(bpf.MapSockUsage), Batch: features.Batch,
		}, nil
	}})
	wanted := map[int][]services.Port{}
	generation := 0
	change := func(which ...int) {
		var changes []services.Change
		generation++
		for _, i := range which {
			after := udp(loadService(i).Name, loadVIP(i), fmt.Sprintf("192.0.2.%d:53", 20+generation%200))
			after[0].Name, after[0].VIPs = after[0].Key.String(), []netip.Addr{after[0].Frontends[0].AddrPort().Addr()}
			changes = append(changes, services.Change{Service: loadService(i), Before: wanted[i], After: after})
			wanted[i] = after
			r.Set(loadService(i), after)
		}
		w.Set(changes)
		r.Begin()
		err := w.Flush(b.Context())
		must(b, err)
		r.Done(nil)
	}
	all := make([]int, loadServices)
	for i := range all {
		all[i] = i
	}
	change(all...)
	var apps []*app
	for i := range loadPods {
		p, err := l.AddPod(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}))
		must(b, err)
		a := openKind(b, p, "many", fmt.Sprint(i*loadSockets))
		if got := a.end(); got != "connected 0" {
			b.Fatal(got)
		}
		apps = append(apps, a)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); must(b, <-done) }()
	moved := uint64(0)
	if seeded.Maps.Map(bpf.MapUDPSockRevNat).MaxEntries() > 2*loadPods*loadSockets { // each has two ways back for a while
		moved = loadPods * loadSockets
		began, first := time.Now(), cpu(b)
		change(all...)
		waitMoved(b, r, moved)
		b.Logf("all %d at once: %v, %v of processor time", moved, time.Since(began).Round(time.Millisecond), (cpu(b) - first).Round(time.Millisecond))
	}

	var took []time.Duration
	next := time.Now()
	before, start := cpu(b), time.Now()
	b.ResetTimer()
	for i := range b.N {
		which := make([]int, loadReplaced)
		for j := range which {
			which[j] = (i*loadReplaced + j) % loadServices
		}
		for _, a := range apps {
			a.begin("go")
		}
		change(which...)
		began := time.Now()
		moved += loadReplaced * loadPods * loadSockets / loadServices
		waitMoved(b, r, moved)
		took = append(took, time.Since(began))
		for _, a := range apps {
			if got := a.end(); got != "refused 0" {
				b.Error(got)
			}
		}
		next = next.Add(time.Second)
		time.Sleep(time.Until(next))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(100*(cpu(b)-before).Seconds()/time.Since(start).Seconds(), "cpu-%")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "worst-ms")
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "median-ms")
	st2 := r.Status()
	if st2.EndedUDP != 0 || st2.Left != 0 || st2.Hung != 0 || st2.Error != nil {
		b.Errorf("%+v", st2)
	}
	b.Logf("%d looks, %d with a search, %v in looks; %d ways back", st2.Looks, st2.Searches, st2.Busy.Round(time.Millisecond), entries(b, seeded.Maps.Map(bpf.MapUDPSockRevNat)))
}

func entries(b *testing.B, m *ebpf.Map) (count int) {
	b.Helper()
	must(b, readMap(m, bpf.ReadConfig{Batch: true}, func(*bpf.UDPRevNatKey, *bpf.UDPRevNat) { count++ }))
	return count
}

func waitMoved(b *testing.B, r *Reconciler, want uint64) {
	b.Helper()
	moved := func() uint64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.status.Moved
	}
	for end := time.Now().Add(20 * time.Second); moved() < want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			st := r.Status()
			st.Services = nil
			b.Fatalf("%d of %d were moved: %+v", st.Moved, want, st)
		}
	}
}
