package workloads

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/lab"
)

// cpu is the processor time of this process: other processes disturb it less than the time on the wall.
func cpu(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkRescan is one look at a node whose pods have ten processes each, by the kernel's own /proc.
func BenchmarkRescan(b *testing.B) {
	m := newMachine(b)
	processes, pods := 0, []*lab.Pod{}
	for _, size := range []int{100, 1000} {
		for processes < size {
			p, _ := m.addPod(len(pods) + 1)
			pods = append(pods, p)
			for range 10 {
				cmd := p.Command(b.Context(), "sleep", "600")
				must(b, cmd.Start())
				b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
				processes++
			}
		}
		r := New(Config{Log: slog.New(slog.DiscardHandler), Store: newFake(1 << 14), Namespaces: netns.Config{Host: m.l.Netns}, Cookie: m.cookie, Programs: true})
		r.SetRanges(true)
		for i := range pods {
			r.SetPod(newPod(fmt.Sprint(i), ips(i+1)))
		}
		r.SetSynced()
		b.Run(fmt.Sprintf("processes=%d", size), func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				r.run.rescan = time.Time{}
				r.reconcile(b.Context())
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
			if st := r.Status(); st.Err != nil {
				b.Errorf("%+v", st)
			}
		})
		b.Run(fmt.Sprintf("list/processes=%d", size), func(b *testing.B) {
			for b.Loop() {
				if _, err := (netns.Config{Host: m.l.Netns}).List(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
