package writer

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/test/lab"
)

func TestPlanOfAFullTable(t *testing.T) {
	f := nat.NewFake(8192)
	f.MaxFrontends = 12 // two for each Service
	r := newRig(t, f)
	for i := range 8 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080"))
	}
	r.flush()
	r.want("kubernetes", api("192.0.2.1:6443"))
	r.flush()
	st := r.w.Status()
	if len(st.Out) != 3 || !st.Out[0].Full || st.Frontends != 12 || st.Room.Frontends != 12 {
		t.Fatalf("status %+v", st)
	}
	r.wantVerdict("10.96.2.1:80", "[192.0.2.1:8080]")
	r.wantVerdict("10.96.2.8:80", "not a frontend")

	// Another proxy that serves one that is out may do so; an address that no Service has is refused.
	r.w.SetServiceRange([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, nil)
	r.flush()
	r.wantVerdict("10.96.2.8:80", "not a frontend")
	r.wantVerdict("10.96.2.9:80", "refused")

	// Room that is made goes to the API service first, once what had it is gone.
	r.want("s0")
	r.flush()
	<-r.room
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443]")
	// Changes of Services that are in go on.
	r.want("s1", web("10.96.2.2:80", "192.0.2.7:8080"))
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.7:8080]")
	if st := r.w.Status(); len(st.Out) != 2 {
		t.Errorf("out: %+v", st.Out)
	}
	r.want("s7") // which never was in
	r.flush()
	lab.Await(t, "its address is refused", func() bool { return r.verdict("10.96.2.8:80") == "refused" })
}

// The memory of a frontend that went may be read until a grace period is over: no other may be written to it before.
func TestPlanDefersFrontends(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.want("b", web("10.96.2.2:80", "192.0.2.2:80"))
	r.want("d", web("10.96.2.4:80", "192.0.2.4:80"))
	r.want("e", web("10.96.2.5:80", "192.0.2.5:80"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.want("a")
	r.flush()
	r.want("b", web("10.96.2.2:80", "192.0.2.9:80")) // needs no frontend, so it need not wait
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.9:80]")
	// What goes, and what comes, is of one piece; endpoints are not held up by it.
	r.want("b", web("10.96.2.2:80", "192.0.2.8:80"))
	r.want("c", web("10.96.2.3:80", "192.0.2.3:80"))
	r.want("d")
	moved := web("10.96.2.6:80", "192.0.2.5:80")
	moved.Key.Name = "10.96.2.5:80"
	r.want("e", moved)
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.8:80]")
	r.wantVerdict("10.96.2.3:80", "not a frontend")
	r.wantVerdict("10.96.2.4:80", "[192.0.2.4:80]")
	r.wantVerdict("10.96.2.5:80", "[192.0.2.5:80]")
	if !r.w.Deferred() || !r.w.Pending() {
		t.Error("nothing is held")
	}
	close(r.f.holds)
	<-r.room
	r.flush()
	r.wantVerdict("10.96.2.3:80", "[192.0.2.3:80]")
	r.wantVerdict("10.96.2.4:80", "not a frontend")
	r.wantVerdict("10.96.2.5:80", "not a frontend")
	r.wantVerdict("10.96.2.6:80", "[192.0.2.5:80]")
	if r.w.Deferred() || r.w.Pending() {
		t.Error("something is held")
	}
}

// What waits for frontends to go must be written, also where nobody can say whether they went.
func TestPlanWritesDeferredAfterAFailure(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.f.unsure = errors.New("no grace")
	r.want("a")
	r.flush()
	r.want("b", web("10.96.2.2:80", "192.0.2.2:80"))
	r.flush()
	close(r.f.holds)
	<-r.room
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.2:80]")
}
