package natinit

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/attach"
)

// fullNode is a node whose table has the default sizes, and as many other Services.
func fullNode(b *testing.B, others int) *node {
	b.Helper()
	n := newNode(b)
	inner, err := n.l.NewCgroup("served") // beside it, connects meet no program at all
	must(b, err)
	n.cgroup = inner
	maps, err := bpf.EnsureMaps(n.pins, bpf.Sizes{})
	must(b, err)
	defer maps.Close()
	store := nat.NewKernel(maps, allFeatures())
	state, err := store.Read()
	must(b, err)
	p := nat.NewPlanner(state, nat.Indexes{First: 1024, Last: math.MaxUint32})
	for i := range others {
		addr := netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)})
		must(b, p.Ensure(nat.Service{
			Name:      fmt.Sprint("other-", i),
			Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(netip.AddrPortFrom(addr, 80), bpf.TCP)},
			VIPs:      []netip.Addr{addr},
			Backends:  []netip.AddrPort{netip.AddrPortFrom(backend4(0), 80), netip.AddrPortFrom(backend4(1), 80)},
		}))
	}
	must(b, p.SetServiceRanges([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}, nil))
	applied, err := nat.Apply(store, p.Plan())
	must(b, err)
	must(b, applied.Commit())
	n.up(b, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	return n
}

// BenchmarkConnectRatio compares connects a second through the VIP with direct ones of a client that meets no program
// of ours, in pairs of a few milliseconds by turns: what else the machine does then meets both. Of the pairs' ratios, the
// median and the quartiles are reported: 1 is as fast as direct, less is slower. of-direct-cpu is the same in processor
// time, which a busy machine disturbs less.
func BenchmarkConnectRatio(b *testing.B) {
	for _, family := range []struct {
		name, vip string
		backend   netip.Addr
	}{{"IPv4", vip4, backend4(0)}, {"IPv6", vip6, backend6(0)}} {
		for _, others := range []int{1, 30000} {
			b.Run(fmt.Sprintf("%s/others=%d", family.name, others), func(b *testing.B) {
				n := fullNode(b, others)
				direct := startConnector(b, n.l, netip.AddrPortFrom(family.backend, 6443).String())
				through := startConnector(b, inCgroup{n.l, n.cgroup}, family.vip)
				comparePairs(b, direct, through)
			})
		}
	}
}

func comparePairs(b *testing.B, direct, through *connector) {
	const pairs, connects = 200, 100
	direct.connect(connects)
	through.connect(connects)
	var wall, cpu, rates []float64
	b.ResetTimer()
	for i := range pairs * b.N {
		var d, v slice
		if i%2 == 0 {
			d, v = direct.connect(connects), through.connect(connects)
		} else {
			v, d = through.connect(connects), direct.connect(connects)
		}
		wall = append(wall, float64(d.Wall)/float64(v.Wall))
		cpu = append(cpu, float64(d.CPU)/float64(v.CPU))
		rates = append(rates, connects/v.Wall.Seconds())
	}
	for name, ratios := range map[string][]float64{"of-direct": wall, "of-direct-cpu": cpu} {
		b.ReportMetric(quantile(ratios, 0.5), name)
		b.ReportMetric(quantile(ratios, 0.25), name+"-q1")
		b.ReportMetric(quantile(ratios, 0.75), name+"-q3")
	}
	b.ReportMetric(quantile(rates, 0.5), "connects/s")
	b.ReportMetric(0, "ns/op")
}

func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// BenchmarkConnectNanos asks the kernel how long the connect program runs, for a connect to a VIP (hit) and to any
// other address (miss). The kernel's own two readings of the clock are part of the figure.
func BenchmarkConnectNanos(b *testing.B) {
	for _, tc := range []struct {
		name, hook, addr string
	}{
		{"IPv4/hit", "connect4", vip4},
		{"IPv4/miss", "connect4", netip.AddrPortFrom(backend4(0), 6443).String()},
		{"IPv6/hit", "connect6", vip6},
		{"IPv6/miss", "connect6", netip.AddrPortFrom(backend6(0), 6443).String()},
	} {
		for _, others := range []int{0, 30000} {
			b.Run(fmt.Sprintf("%s/others=%d", tc.name, others), func(b *testing.B) {
				n := fullNode(b, others)
				prog := n.linked(b, tc.hook)
				stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
				must(b, err)
				b.Cleanup(func() { stats.Close() })
				client := startConnector(b, inCgroup{n.l, n.cgroup}, tc.addr)
				client.connect(500)
				var nanos []float64
				b.ResetTimer()
				for range 15 * b.N {
					before, err := prog.Stats()
					must(b, err)
					client.connect(500)
					after, err := prog.Stats()
					must(b, err)
					nanos = append(nanos, float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount))
				}
				b.ReportMetric(quantile(nanos, 0.5), "ns/connect")
				b.ReportMetric(quantile(nanos, 0), "ns/connect-min")
				b.ReportMetric(quantile(nanos, 1), "ns/connect-max")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// linked is the program of a hook's pinned link.
func (n *node) linked(b *testing.B, hook string) *ebpf.Program {
	b.Helper()
	l, err := link.LoadPinnedLink(n.pins.Links()+"/"+hook, nil)
	must(b, err)
	defer l.Close()
	info, err := l.Info()
	must(b, err)
	p, err := ebpf.NewProgramFromID(info.Program)
	must(b, err)
	b.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkRun is the work of the init stage on the kernel: tables, programs, attachments, all committed.
func BenchmarkRun(b *testing.B) {
	bal := bpf.Balancer{UDP: true}
	for by, f := range byRung() {
		b.Run("first/"+string(by), func(b *testing.B) {
			n := newNode(b)
			for range b.N {
				n.upAtDefaultSize(b, f, bal)
				b.StopTimer()
				must(b, n.remove())
				b.StartTimer()
			}
		})
		b.Run("second/"+string(by), func(b *testing.B) {
			n := newNode(b)
			n.upAtDefaultSize(b, f, bal)
			b.ResetTimer()
			for range b.N {
				n.upAtDefaultSize(b, f, bal)
			}
		})
	}
}

func (n *node) upAtDefaultSize(b *testing.B, f bpf.Features, bal bpf.Balancer) {
	b.Helper()
	s, err := Seed(SeedConfig{Pins: n.pins, Features: f, Services: services(0)})
	must(b, err)
	a, err := attach.Attach(n.attachConfig(s.Maps, f, bal))
	must(b, err)
	(&run{s, a}).commit(b)
}

// BenchmarkMemory reports what the maps of the init stage take, by the kernel's own account.
func BenchmarkMemory(b *testing.B) {
	n := newNode(b)
	n.upAtDefaultSize(b, allFeatures(), bpf.Balancer{UDP: true})
	m, err := bpf.OpenMaps(n.pins, true)
	must(b, err)
	defer m.Close()
	total := uint64(0)
	for range b.N {
		total = 0
		for _, name := range bpf.MapNames() {
			info, err := m.Map(name).Info()
			must(b, err)
			bytes, ok := info.Memlock()
			if !ok {
				b.Fatal("the kernel doesn't say what a map takes")
			}
			total += bytes
		}
	}
	b.ReportMetric(float64(total)/(1<<20), "MiB")
	b.ReportMetric(0, "ns/op")
}
