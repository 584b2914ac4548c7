package sockets

import (
	"errors"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// While no programs are attached, a socket would be connected to the Service's own address.
func TestActWaitsForPrograms(t *testing.T) {
	n := newNode(t)
	var detached error
	r := n.reconciler(func(c *Config) { c.Attached = func() error { return detached } })
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	r.lead(1)
	detached = errors.New("detached")
	for _, later := range []time.Duration{0, goneTime, interval} {
		if st := r.step(later); st.Counts != (Counts{}) || st.Left != 1 {
			t.Errorf("%v later: %+v", later, st)
		}
	}
	detached = nil
	if st := r.step(goneTime); st.Counts != (Counts{Moved: 1}) || st.Left != 0 {
		t.Errorf("attached again: %+v", st)
	}
}

// A socket that its Service leads nowhere again waits on: its client is not allowed. It is no socket that could not be
// moved, and is not tried again at each look.
func TestActLeavesWhatStays(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	n.serve() // no backend in the table
	a := open(t, n.addPod(1), "udp4", 0)
	n.waitNowhere(a, vip4)
	r.tell(1)
	if st := r.step(0); st.Counts != (Counts{}) || st.Left != 0 || len(r.candidates) != 1 {
		t.Fatalf("%+v, %d candidates", st, len(r.candidates))
	}
	a.want(vip4, "peer")
	for _, c := range r.candidates {
		if wait := c.due.Sub(r.now()); wait <= interval || wait > stayTime {
			t.Errorf("it is tried again in %v, want %v", wait, stayTime)
		}
	}
	n.serve(1)
	if st := r.step(stayTime); st.Moved != 1 {
		t.Errorf("%+v: want it moved", st)
	}
}

// One thread waits for a socket's lock, however often it is looked at.
func TestActBeginsNothingTwice(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.crew.limit = 50 * time.Millisecond
	a := open(t, n.addPod(1), "udp4", 0)
	a.connects(vip4)
	if got := a.do("hold"); got != "ok" {
		t.Fatal("cannot hold the lock of a socket: ", got)
	}
	r.lead(1)
	for range 4 {
		if st := r.step(goneTime); st.Hung != 1 {
			t.Errorf("%+v: want one hung", st)
		}
	}
	must(t, a.process.Kill())
	lab.Await(t, "the thread", func() bool { return r.Status().Hung == 0 })
	if r.step(0); len(r.crew.returned()) != 0 {
		t.Error("its result was not taken")
	}
}
