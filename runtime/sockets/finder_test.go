package sockets

import (
	"os"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// A tenant may have as many processes and descriptors as it likes: what takes long is done beside the looks.
func TestFindHoldersBesideTheLooks(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	for _, c := range all {
		c.connects(c.vip)
	}
	r.quickTime, r.patience = 0, 0
	r.lead(1)
	st := r.step(0)
	for range 5 {
		lab.Await(t, "a search", func() bool {
			return (!r.searching.underWay() || len(r.searching.result) == 1) && (!r.seeking.underWay() || len(r.seeking.result) == 1)
		})
		st = r.step(againTime)
	}
	if st.Moved != uint64(len(all)) || st.EndedUDP != 0 || st.Left != 0 {
		t.Errorf("%+v, want all %d moved", st, len(all))
	}
	if len(r.slow) != 2 {
		t.Errorf("%d network namespaces are slow, want two", len(r.slow))
	}
}

// While that hangs for one tenant's sake, the sockets of others are found; those that are not, are ended in the end.
func TestFindHoldersWhileOneHangs(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.patience = 0
	hangs := make(chan bool)
	r.seeking.run(0, func() held { <-hangs; return held{} })
	defer close(hangs)
	flying := open(t, n.addPod(1), "udp4", 0)
	flying.connects(vip4)
	flying.want("ok", "fly")
	others := n.clientsOf([]clients.Machine{n.l, n.addPod(2)}, "udp", 0)
	for _, c := range others {
		c.connects(c.vip)
	}
	r.patience = time.Minute // for the list of sockets
	r.lead(1)
	if st := r.step(0); st.Moved != uint64(len(others)) || st.EndedUDP != 0 || st.Left != 1 {
		t.Errorf("%+v, want %d moved and one left", st, len(others))
	}
	if st := r.step(goneTime); st.EndedUDP != 0 || st.Left != 1 {
		t.Errorf("after a second: %+v", st)
	}
	if st := r.step(seekTime); st.EndedUDP != 1 || st.Left != 0 {
		t.Errorf("after %v: %+v, want it ended", goneTime+seekTime, st)
	}
}

func TestFinderEndsInTime(t *testing.T) {
	look := finder{proc: "/proc", wanted: map[uint32]uint64{1: 1}, until: time.Now().Add(-time.Second)}
	if look.look(t.Context(), []int{os.Getpid()}); !look.ended || len(look.wanted) != 1 {
		t.Errorf("%+v: want it ended", look)
	}
	look.until = time.Now().Add(time.Hour)
	if look.look(t.Context(), []int{os.Getpid()}); look.ended {
		t.Error("it ended early")
	}
}
