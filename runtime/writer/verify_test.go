package writer

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// stateOf is a table of many Services with two backends each.
func stateOf(n int) *nat.State {
	s := nat.NewState(uint32(2 * n))
	for i := range uint32(n) {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
		s.Frontends[bpf.FrontendKeyOf(a, bpf.TCP)] = bpf.Frontend{Index: i}
		s.Frontends[bpf.FrontendKey{Addr: bpf.AddressOf(a.Addr())}] = bpf.Frontend{Flags: bpf.FrontendVIP}
		s.ServiceStates[bpf.ServiceStateAt(i, false)] = bpf.ServiceStateOf(i, 2)
		s.Sets[i] = map[uint32]bpf.Backend{0: {ID: i}, 1: {ID: i + 1}}
	}
	return s
}

func BenchmarkCompare(b *testing.B) {
	for _, n := range []int{10000, 30000} {
		x, y := stateOf(n), stateOf(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if !same(x, y) {
					b.Fatal("not the same")
				}
			}
		})
	}
}

func TestCompare(t *testing.T) {
	const n = 100
	for name, edit := range map[string]func(*nat.State){
		"a frontend leads elsewhere": func(s *nat.State) {
			for k := range s.Frontends {
				s.Frontends[k] = bpf.Frontend{Index: 7777}
				return
			}
		},
		"a frontend is another": func(s *nat.State) {
			delete(s.Frontends, anyKey(s.Frontends))
			s.Frontends[bpf.FrontendKey{Proto: bpf.UDP}] = bpf.Frontend{}
		},
		"a frontend is gone":      func(s *nat.State) { delete(s.Frontends, anyKey(s.Frontends)) },
		"a word is another":       func(s *nat.State) { s.ServiceStates[anyKey(s.ServiceStates)] = bpf.ServiceStateOf(7777, 1) },
		"a backend is another":    func(s *nat.State) { s.Sets[anyKey(s.Sets)][1] = bpf.Backend{ID: 7777} },
		"a backend is gone":       func(s *nat.State) { delete(s.Sets[anyKey(s.Sets)], 1) },
		"there is a range":        func(s *nat.State) { s.SourceRanges[bpf.SourceRangeKey{Index: 1}] = true },
		"there is a set too many": func(s *nat.State) { s.Sets[7777] = map[uint32]bpf.Backend{0: {}} },
	} {
		a, b := stateOf(n), stateOf(n)
		if !same(a, b) {
			t.Fatal("equal ones differ")
		}
		edit(b)
		if same(a, b) {
			t.Errorf("%s: the same", name)
		}
	}
	a, b := stateOf(n), stateOf(n)
	entries := 0
	for equal := range compare(a, b) {
		if entries++; !equal {
			t.Error("equal ones differ")
		}
	}
	if entries != 4*n {
		t.Errorf("%d entries of %d", entries, 4*n)
	}
	for stop := range 4 * n {
		left := stop
		for range compare(a, b) { // in any of the maps
			if left--; left < 0 {
				break
			}
		}
	}
}

func anyKey[K comparable, V any](m map[K]V) K {
	for k := range m {
		return k
	}
	panic("an empty map")
}

// A change may come while the table is compared: it waits for a part of that, and the comparison ends.
func TestVerifyBesideFlushes(t *testing.T) {
	r := newRig(t, nil)
	for i := range 4 * lookPart {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.%d.%d:80", i/250, 1+i%250), "10.0.0.1:80"))
	}
	r.flush()
	stop, flushed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				flushed <- n
				return
			default:
			}
			r.want("s1", web("10.96.0.2:80", fmt.Sprintf("10.0.0.%d:80", 2+n%200)))
			if err := r.w.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 20 {
		if repaired, err := r.w.Verify(t.Context()); repaired || err != nil {
			t.Errorf("repaired %v, %v", repaired, err)
		}
	}
	close(stop)
	if n := <-flushed; n == 0 {
		t.Error("nothing was flushed meanwhile")
	}
}

func TestVerifyRepairsEditsOfOthers(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(r *rig)
	}{
		{"a frontend that is gone", func(r *rig) { r.f.DeleteFrontends([]bpf.FrontendKey{tcp("10.96.2.1:80")}) }},
		{"a frontend that leads elsewhere", func(r *rig) {
			r.f.PutFrontends([]bpf.FrontendKey{tcp("10.96.2.1:80")}, []bpf.Frontend{{Index: 1025}})
		}},
		{"a word that is empty", func(r *rig) { r.f.PutServiceStates([]uint32{bpf.ServiceStateAt(1024, false)}, []bpf.ServiceState{0}) }},
		{"a backend that is gone", func(r *rig) { r.f.DeleteBackends([]bpf.BackendKey{{Set: 1, Slot: 0}}) }},
		{"a backend that is another", func(r *rig) {
			r.f.PutBackends([]bpf.BackendKey{{Set: 1, Slot: 0}}, []bpf.Backend{{Port: bpf.PortOf(6666)}})
		}},
		{"a frontend of the runtime's that nobody wants", func(r *rig) {
			r.f.PutFrontends([]bpf.FrontendKey{tcp("10.96.6.6:80")}, []bpf.Frontend{{Index: 1999}})
		}},
		{"a source range that nobody wants", func(r *rig) {
			r.f.PutSourceRanges([]bpf.SourceRangeKey{bpf.SourceRangeKeyOf(1024, netip.MustParsePrefix("10.0.0.0/8"))})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.want("a", web("10.96.2.1:80", "192.0.2.1:80", "192.0.2.2:80"))
			r.want("b", web("10.96.2.2:80", "192.0.2.3:80"))
			r.flush()
			if repaired, err := r.w.Verify(t.Context()); repaired || err != nil {
				t.Fatalf("before: %v, %v", repaired, err)
			}
			before, _ := r.f.Read()
			tc.edit(r)
			if repaired, err := r.w.Verify(t.Context()); !repaired || err != nil {
				t.Errorf("repaired: %v, %v", repaired, err)
			}
			r.settle()
			r.wantVerdict("10.96.2.1:80", "[192.0.2.1:80 192.0.2.2:80]")
			r.wantVerdict("10.96.2.2:80", "[192.0.2.3:80]")
			r.wantVerdict("10.96.6.6:80", "not a frontend")
			after, _ := r.f.Read()
			if len(after.Frontends) != len(before.Frontends) || len(after.SourceRanges) != 0 || len(after.Sets) != len(before.Sets) {
				t.Errorf("was %+v, is %+v", before, after)
			}
			if repaired, err := r.w.Verify(t.Context()); repaired || err != nil {
				t.Errorf("again: %v, %v", repaired, err)
			}
			if st := r.w.Status(); st.Repairs != 1 {
				t.Errorf("%d repairs", st.Repairs)
			}
		})
	}
}
