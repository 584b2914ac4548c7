package nat

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"testing"

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
