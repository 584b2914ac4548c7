package nat

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// Clients with affinity and sockets remember backends by their ids, also from the program's former version.
func TestMemberIDsAreHashesOfAddresses(t *testing.T) {
	for _, text := range []string{"10.1.2.3:80", "[fd00::1]:443", "255.255.255.255:65535", "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"} {
		h := fnv.New32a()
		h.Write([]byte(text))
		ids := memberIDs(addrs(text), nil)
		if want := h.Sum32() | bpf.BackendMember; ids[0] != want {
			t.Errorf("%s has the id %#x, want %#x", text, ids[0], want)
		}
	}
}

// A short list is searched, a long one has a map: they are treated alike.
func TestDistinctOfShortAndLongLists(t *testing.T) {
	for _, n := range []int{1, few - 1, few, few + 1, 3 * few} {
		var list []netip.AddrPort
		for i := range n {
			list = append(list, addrs(fmt.Sprintf("10.0.0.%d:80", i))...)
		}
		if got := distinct(append(slices.Clone(list), list...)); !slices.Equal(got, list) {
			t.Errorf("%d of them twice: %v", n, got)
		}
		former := map[uint32]bpf.Backend{0: {Addr: bpf.AddressOf(list[0].Addr()), Port: bpf.PortOf(80), ID: hash(list[n-1]) | bpf.BackendMember}}
		ids := memberIDs(list, former)
		slices.Sort(ids)
		if len(slices.Compact(ids)) != n {
			t.Errorf("of %d, two have one id", n)
		}
		if got := memberIDs(list, former)[0]; got != former[0].ID {
			t.Errorf("of %d, the first has the id %#x, want %#x as before", n, got, former[0].ID)
		}
	}
}

func (s *State) marksOf(index uint32) map[string]bool {
	out := map[string]bool{}
	for _, b := range s.OnNode(index) {
		out[b.String()] = true
	}
	return out
}

// Sets of a former version say of no backend that it is on this node. They are written anew, once, and clients keep theirs.
func TestAssignMarksBackendsOnThisNode(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	svc := cluster(1, "192.0.2.1:1", "192.0.2.2:2")
	svc.Sticky, svc.Affinity = true, time.Hour
	index := w.assign(0, svc)
	remote := w.assign(0, cluster(2, "192.0.2.3:3"))
	w.carryOut()
	set := func() map[uint32]bpf.Backend {
		s := mustRead(t, w.f)
		return s.Sets[s.ServiceStates[bpf.ServiceStateAt(index, false)].Set()]
	}
	former := set()
	w = newWriter(t, w.f)
	w.assign(index, onNode(svc, "192.0.2.2:2"))
	w.assign(remote, cluster(2, "192.0.2.3:3"))
	if plan := w.carryOut(); len(plan.NewSets) != 1 || len(plan.ServiceStates) != 1 || len(plan.Puts) > 0 {
		t.Errorf("plan %+v, want one new set", plan)
	}
	if got := mustRead(t, w.f).marksOf(index); len(got) != 1 || !got["192.0.2.2:2"] {
		t.Errorf("on this node are %v", got)
	}
	for slot, be := range set() {
		if was := former[slot]; was.ID != be.ID || was.AddrPort() != be.AddrPort() || slot == bpf.SlotAffinity && be.Flags != 0 {
			t.Errorf("%#x was %+v, is %+v", slot, was, be)
		}
		if member := set()[be.ID]; slot != bpf.SlotAffinity && member != be {
			t.Errorf("%#x is %+v by its id %+v", slot, be, member)
		}
	}
	w.assign(index, onNode(svc, "192.0.2.2:2"))
	if plan := w.carryOut(); !plan.Empty() {
		t.Errorf("the same again plans %+v", plan)
	}
	// An API server that goes, say: what is known of the others stays.
	must(t, w.p.Replace(index, addrs("192.0.2.2:2")))
	w.carryOut()
	if got := mustRead(t, w.f).marksOf(index); len(got) != 1 {
		t.Errorf("after other backends on this node are %v", got)
	}
	w.assign(index, svc)
	w.carryOut()
	if got := mustRead(t, w.f).marksOf(index); len(got) != 0 {
		t.Errorf("in the end on this node are %v", got)
	}
}

// A later version may know more of a backend.
func TestAssignLeavesUnknownFlagsOfBackendsAlone(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	index := w.assign(0, cluster(1, "192.0.2.1:1"))
	w.carryOut()
	set := w.f.state.Sets[w.f.state.ServiceStates[bpf.ServiceStateAt(index, false)].Set()]
	be := set[0]
	be.Flags |= 0x8000
	set[0] = be
	w = newWriter(t, w.f)
	w.assign(index, cluster(1, "192.0.2.1:1"))
	if plan := w.carryOut(); !plan.Empty() {
		t.Errorf("plan %+v, want nothing", plan)
	}
}
