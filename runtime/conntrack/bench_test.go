package conntrack

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// manyFlows makes a map with pairs of entries, of which one in so many is overdue, and returns what the kernel charges for it.
func manyFlows(tb testing.TB, capacity uint32, pairs int, overdue int) (Table, int) {
	tb.Helper()
	maps, err := bpf.EnsurePacketMaps(bpf.PinsBelow(lab.New(tb).BPFFS), capacity)
	must(tb, err)
	tb.Cleanup(func() { maps.Close() })
	table := Table{Map: maps.Map(bpf.MapConntrack), Batch: lab.KernelFeatures().Batch}
	fillFlows(tb, table, pairs, overdue)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", table.Map.FD()))
	must(tb, err)
	charged, err := strconv.Atoi(string(regexp.MustCompile(`memlock:\s*(\d+)`).FindSubmatch(info)[1]))
	must(tb, err)
	return table, charged
}

func fillFlows(tb testing.TB, table Table, pairs int, overdue int) {
	tb.Helper()
	frontend, backend := ap("192.0.2.10:53"), ap("10.1.0.5:5353")
	to := func(a netip.AddrPort, seen uint64) bpf.Flow {
		return bpf.Flow{Addr: bpf.AddressOf(a.Addr()), Port: bpf.PortOf(a.Port()), Flags: bpf.FlowReplied, Seen: seen}
	}
	keys, values := make([]bpf.FlowKey, 0, 2*pairs), make([]bpf.Flow, 0, 2*pairs)
	for i := range pairs {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), uint16(10000+i>>16))
		seen := Now()
		if overdue > 0 && i%overdue == 0 {
			seen = 0
		}
		keys = append(keys, bpf.FlowKeyOf(client, frontend, bpf.UDP, bpf.WayIn), bpf.FlowKeyOf(backend, client, bpf.UDP, bpf.WayOut))
		values = append(values, to(backend, seen), to(frontend, seen))
	}
	for i := range keys {
		must(tb, table.Map.Update(&keys[i], &values[i], ebpf.UpdateAny))
	}
}

// processorTime is what this thread has used. Others use this machine, too.
func processorTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkCollect needs a pass over a map with 500,000 entries, in which nothing has ended; where one in ten has; and one by one, as
// before Linux 5.6. %core is what passes take of a processor with the pauses between them.
func BenchmarkCollect(b *testing.B) {
	const pairs = 250_000
	for _, bm := range []struct {
		name    string
		batch   bool
		overdue int
	}{{"quiet", true, 0}, {"tenth", true, 10}, {"one-by-one", false, 0}} {
		b.Run(bm.name, func(b *testing.B) {
			table, _ := manyFlows(b, bpf.MaxFlows, pairs, bm.overdue)
			table.Batch = table.Batch && bm.batch
			log, _ := lab.NewLog()
			c := New(Config{Log: log, Table: table, Gone: func(netip.AddrPort, bpf.Proto, netip.AddrPort) bool { return false }})
			unlock := lockThread()
			defer unlock()
			var used, paused time.Duration
			for range b.N {
				begun := processorTime()
				pause := c.Pass()
				used += processorTime() - begun
				paused += pause
				if bm.overdue > 0 {
					fillFlows(b, table, pairs, bm.overdue)
				}
			}
			if err := c.Status().Error; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(used)/float64(b.N)/(2*pairs), "ns/entry")
			b.ReportMetric(100*float64(used)/float64(used+paused), "%core")
		})
	}
}

// Whatever a pass takes by the clock, the pause after it keeps passes to their share: 2% of a processor.
func TestPassesKeepToTheirShare(t *testing.T) {
	for _, took := range []time.Duration{time.Microsecond, 100 * time.Millisecond, time.Second, time.Minute} {
		for _, full := range []float64{0, 0.5, 1} {
			if part := float64(took) / float64(took+pauseAfter(took, full)); part > 0.02 {
				t.Errorf("a pass of %s over a map that is %v full: %.4f of a processor", took, full, part)
			}
		}
	}
}

// What docs/runtime.md says that maps take is what the kernel says, and no more than what bpf.NodeFlows counts with.
func TestMemoryOfFlows(t *testing.T) {
	for _, capacity := range []uint32{bpf.MinFlows, bpf.MaxFlows} {
		_, charged := manyFlows(t, capacity, 0, 0)
		each := float64(charged) / float64(capacity)
		t.Logf("%d entries: %d bytes, %.1f each", capacity, charged, each)
		if each < 120 || each > 160 {
			t.Errorf("%d entries take %.1f bytes each", capacity, each)
		}
	}
}

// lockThread keeps the calling goroutine on its thread, whose processor time is read.
func lockThread() (unlock func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
