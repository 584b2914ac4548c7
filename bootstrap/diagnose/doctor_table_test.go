package diagnose

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// richTable has everything that a table can have, written by the planner.
func richTable(t *testing.T) *nat.State {
	t.Helper()
	front := func(s string, p bpf.Proto) bpf.FrontendKey { return bpf.FrontendKeyOf(netip.MustParseAddrPort(s), p) }
	backends := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}
	a, b, c := front("10.96.0.1:80", bpf.TCP), front("10.96.0.2:53", bpf.UDP), front("10.96.0.3:80", bpf.TCP)
	p := nat.NewPlanner(nat.NewState(4096), nat.RuntimeIndexes)
	for _, svc := range []nat.Service{
		{Frontends: []bpf.FrontendKey{a}, VIPs: []netip.Addr{a.Addr.Addr()}, Backends: backends, Affinity: time.Hour},
		{Frontends: []bpf.FrontendKey{b}, Backends: backends, Sticky: true},
		{Frontends: []bpf.FrontendKey{c, front("192.0.2.1:80", bpf.TCP)}, Backends: backends, Local: backends[:1],
			Flags:        map[bpf.FrontendKey]bpf.FrontendFlags{c: bpf.FrontendLocalPolicy | bpf.FrontendSourceRange},
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		{Frontends: []bpf.FrontendKey{front("203.0.113.1:80", bpf.TCP)}, Backends: backends, Local: backends[:1], OnNode: backends[:1],
			ExternalVIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")},
			Flags: map[bpf.FrontendKey]bpf.FrontendFlags{
				front("203.0.113.1:80", bpf.TCP): bpf.FrontendExternal | bpf.FrontendExternalLocal | bpf.FrontendExternalRange},
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		{Frontends: []bpf.FrontendKey{front("10.96.0.4:80", bpf.TCP)}, AllowEmpty: true},
		{Frontends: []bpf.FrontendKey{front("10.96.0.5:80", bpf.TCP)}, Backends: backends, Local: []netip.AddrPort{}},
	} {
		if _, err := p.Assign(0, svc); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.SetServiceRanges([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, []netip.Prefix{netip.MustParsePrefix("10.96.0.9/32")}); err != nil {
		t.Fatal(err)
	}
	if err := p.SetNodes([]netip.Addr{netip.MustParseAddr("192.0.2.6")}); err != nil {
		t.Fatal(err)
	}
	return p.State()
}

func TestInspectTableOfThePlanner(t *testing.T) {
	s := richTable(t)
	if broken, loose := inspectTable(s); len(broken)+len(loose) > 0 {
		t.Errorf("broken %q, loose %q", broken, loose)
	}
}

func TestInspectTable(t *testing.T) {
	key := func(s string) bpf.FrontendKey { return bpf.FrontendKeyOf(netip.MustParseAddrPort(s), bpf.TCP) }
	setOf := func(s *nat.State, frontend bpf.FrontendKey) map[uint32]bpf.Backend {
		return s.Sets[s.ServiceStates[bpf.ServiceStateAt(s.Frontends[frontend].Index, false)].Set()]
	}
	dns := bpf.FrontendKeyOf(netip.MustParseAddrPort("10.96.0.2:53"), bpf.UDP)
	withoutMembers := func(set map[uint32]bpf.Backend) {
		maps.DeleteFunc(set, func(slot uint32, _ bpf.Backend) bool { return slot&bpf.BackendMember != 0 })
	}
	for _, tc := range []struct {
		name   string
		change func(s *nat.State)
		broken bool
		says   string
	}{
		{"a slot is empty", func(s *nat.State) { delete(setOf(s, key("10.96.0.3:80")), 1) }, true, "slot 1 is empty"},
		{"a set is not there", func(s *nat.State) {
			delete(s.Sets, s.ServiceStates[bpf.ServiceStateAt(s.Frontends[dns].Index, false)].Set())
		}, true, "slot 0 is empty"},
		{"a sticky frontend's backends have no entries by id", func(s *nat.State) { withoutMembers(setOf(s, dns)) }, true, "by its id"},
		{"affinity without entries by id", func(s *nat.State) { withoutMembers(setOf(s, key("10.96.0.1:80"))) }, true, "by its id"},
		{"affinity without its time", func(s *nat.State) { delete(setOf(s, key("10.96.0.1:80")), bpf.SlotAffinity) }, true, "for how long"},
		{"an index beyond the table", func(s *nat.State) { s.Frontends[key("10.96.0.9:80")] = bpf.Frontend{Index: s.Services} }, true, "has index 4096"},
		{"no index", func(s *nat.State) { s.Frontends[key("10.96.0.9:80")] = bpf.Frontend{} }, true, "has index 0"},
		{"a whole address without the mark", func(s *nat.State) {
			s.Frontends[bpf.VIPKeyOf(netip.MustParseAddr("10.96.0.1"))] = bpf.Frontend{}
		}, true, "not marked"},
		{"a mark without a frontend", func(s *nat.State) {
			s.Frontends[bpf.VIPKeyOf(netip.MustParseAddr("10.96.0.9"))] = bpf.Frontend{Flags: bpf.FrontendVIP}
		}, false, "its ports are refused"},
		{"a node's address that is marked as a Service's", func(s *nat.State) {
			s.Frontends[bpf.NodeKeyOf(netip.MustParseAddr("192.0.2.7"))] = bpf.Frontend{Flags: bpf.FrontendVIP}
		}, true, "node/192.0.2.7"},
		{"words without a frontend", func(s *nat.State) { delete(s.Frontends, key("10.96.0.5:80")) }, false, "have no frontend"},
		{"a set that no service state leads to", func(s *nat.State) { s.Sets[99999] = map[uint32]bpf.Backend{} }, false, "set 99999"},
		{"source ranges of nobody's", func(s *nat.State) {
			s.SourceRanges[bpf.SourceRangeKeyOf(3000, netip.MustParsePrefix("192.0.2.0/24"))] = true
		}, false, "192.0.2.0/24"},
	} {
		s := richTable(t)
		tc.change(s)
		broken, loose := inspectTable(s)
		found := loose
		if tc.broken {
			found = broken
		}
		if !tc.broken && len(broken) > 0 || !strings.Contains(strings.Join(found, "\n"), tc.says) {
			t.Errorf("%s: broken %q, loose %q; want %q", tc.name, broken, loose, tc.says)
		}
	}
}

func TestFewNamesTheFirstOfMany(t *testing.T) {
	if got := Few(strings.Fields("a b c d e f g h i j")); got != "a, b, c, d, e, f, g, h and 2 more" {
		t.Error(got)
	}
	if got := Few(strings.Fields("a b")); got != "a, b" {
		t.Error(got)
	}
}
