package writer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf/nat"
)

func TestWriterWritesWhatIsSet(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.1.1:80", "192.0.2.1:8080"), web("10.96.1.1:443"))
	r.wantVerdict("10.96.1.1:80", "not a frontend")
	r.flush()
	r.wantVerdict("10.96.1.1:80", "[192.0.2.1:8080]")
	r.wantVerdict("10.96.1.1:443", "refused")
	r.want("a", web("10.96.1.1:80", "192.0.2.2:8080"))
	r.flush()
	r.wantVerdict("10.96.1.1:80", "[192.0.2.2:8080]")
	r.wantVerdict("10.96.1.1:443", "refused")
	r.want("a")
	r.flush()
	r.wantVerdict("10.96.1.1:80", "not a frontend")
	r.settle()
	if s, _ := r.f.Read(); len(s.Frontends)+len(s.ServiceStates)+len(s.Sets) != 0 {
		t.Errorf("left over: %+v", s)
	}
	if st := r.w.Status(); st.Ports != 0 || st.Flushes != 3 || !st.Adopted || len(st.Out) != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestWriterWritesNoUnchangedService(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080", "192.0.2.2:8080"))
	}
	r.flush()
	writes := r.f.Writes
	for i := range 20 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.2:8080", "192.0.2.1:8080"))
	}
	r.flush()
	if r.f.Writes != writes {
		t.Errorf("%d writes for nothing", r.f.Writes-writes)
	}
}

// Rule 1, "never empty": for all clients, the API service keeps what it has.
func TestWriterNeverEmptiesTheAPIService(t *testing.T) {
	f := nat.NewFake(8192)
	seed(t, f, "192.0.2.1:6443")
	r := newRig(t, f)
	r.want("kubernetes", api())
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443]")
	r.want("kubernetes", api("192.0.2.2:6443"))
	r.flush()
	r.want("kubernetes", api())
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.2:6443]")
	if st := r.w.Status(); len(st.Out) != 1 || !strings.Contains(st.Out[0].Err, "without a backend") || st.Out[0].Full {
		t.Errorf("status %+v", st)
	}
	if n := strings.Count(r.log.String(), "without a backend"); n != 2 {
		t.Errorf("told %d times, want once each: %s", n, r.log)
	}
}

func TestWriterRetriesAFailedWrite(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.want("a", web("10.96.2.1:80", "192.0.2.2:80"))
	r.want("b", web("10.96.2.2:80", "192.0.2.3:80"))
	r.f.broken = errors.New("the kernel says no")
	if err := r.w.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "the kernel says no") {
		t.Errorf("got %v", err)
	}
	r.wantVerdict("10.96.2.1:80", "[192.0.2.1:80]")
	r.flush()
	r.wantVerdict("10.96.2.1:80", "[192.0.2.2:80]")
	r.wantVerdict("10.96.2.2:80", "[192.0.2.3:80]")
}
