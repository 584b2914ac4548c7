package workloads

import (
	"fmt"
	"testing"
	"time"

	"github.com/firsthop/firsthop/runtime/netnss"
	"github.com/firsthop/firsthop/test/lab"
)

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
		r := New(Config{Store: newFake(1 << 14), Namespaces: netnss.Config{Host: m.l.Netns}, Programs: true})
		r.SetRanges(true)
		for i := range pods {
			r.SetPod(newPod(fmt.Sprint(i), ips(i+1)))
		}
		r.SetSynced()
		b.Run(fmt.Sprintf("processes=%d", size), func(b *testing.B) {
			for b.Loop() {
				r.run.rescan = time.Time{}
				r.reconcile(b.Context())
			}
			if st := r.Status(); st.Err != nil || st.Namespaces < len(pods) {
				b.Errorf("%+v", st)
			}
		})
		b.Run(fmt.Sprintf("list/processes=%d", size), func(b *testing.B) {
			for b.Loop() {
				if _, err := (netnss.Config{Host: m.l.Netns}).List(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
