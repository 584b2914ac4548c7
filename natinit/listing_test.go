package natinit

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// A link has an id before it can be opened by it: who lists links meanwhile is told to come again.
func TestLinksAreListedWhileOthersMakeSome(t *testing.T) {
	if !allFeatures().Link {
		lab.NeedsLinux(t, 5, 8, "listing of links")
	}
	n := newNode(t)
	m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64})
	must(t, err)
	defer m.Close()
	progs, err := bpf.LoadPrograms(m, bpf.Balancer{}, allFeatures())
	must(t, err)
	dir, err := os.Open(n.cgroup)
	must(t, err)
	defer dir.Close()
	connect4 := bpf.Hooks()[6]
	var stop atomic.Bool
	var makers sync.WaitGroup
	for range 3 {
		makers.Go(func() {
			for !stop.Load() {
				l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: progs[connect4.Name], Attach: connect4.Attach})
				if err == nil {
					l.Close()
				}
			}
		})
	}
	j := newJournal(t)
	must(t, j.Record(instance.KindProgram, "connect4 id 4000000000 tag 0", ""))
	cfg := n.removal(j, objects.Links{})
	for range 250 { // times eight hooks
		if err := CheckRemove(cfg); err != nil {
			t.Errorf("list links: %v", err)
			break
		}
	}
	stop.Store(true)
	makers.Wait()
	for _, p := range progs {
		p.Close()
	}
}
