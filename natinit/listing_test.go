package natinit

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

// anything is a record of which nothing is known.
type anything struct{}

func (anything) Note([]attach.RecordedProgram) error { return nil }
func (anything) Noted(attach.RecordedProgram) bool   { return false }
func (anything) Empty() bool                         { return false }

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
	recorded := n.removal(anything{}, objects.Links{})
	for range 250 { // times eight hooks
		if err := recorded.Check(); err != nil {
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
