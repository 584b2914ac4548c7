package conntrack

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsthop/firsthop/bpf"
)

func TestFlows(t *testing.T) {
	eachRig(t, all, func(t *testing.T, r *rig) {
		second := netip.AddrPortFrom(r.client.Addr(), r.client.Port()+1)
		r.in(r.frontend, begins)
		r.leave(begins)
		r.comeBack(begins)
		first := r.client
		r.client = second
		r.in(r.other, begins)
		table := NewTable(r.Map)
		list, err := table.List(Filter{})
		must(t, err)
		want := []Flow{
			{Proto: r.proto, Client: first, Frontend: r.frontend, Backend: r.backend, State: Established, Index: 3},
			{Proto: r.proto, Client: second, Frontend: r.other, Backend: r.backend, State: Unanswered, Index: 4},
		}
		if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Flow{}, "Age", "entry"), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
		for i, source := range []netip.AddrPort{r.node, {}} {
			if got, err := table.Source(&list[i]); got != source || err != nil {
				t.Errorf("packets of flow %d get %s (%v), want %s", i, got, err, source)
			}
			if age := list[i].Age; age > time.Minute {
				t.Errorf("flow %d is %s old", i, age)
			}
		}
		counts, err := table.Count(Filter{States: []State{Unanswered}})
		must(t, err)
		if counts.Entries != 7 || counts.Capacity != int(r.Map.MaxEntries()) || len(counts.Flows) != 1 || counts.Flows[Kind{r.proto, Unanswered}] != 1 {
			t.Errorf("counts: %+v", counts)
		}
		if n, err := table.Flush(Filter{Frontend: Endpoint{Addr: r.frontend.Addr()}}); n != 1 || err != nil {
			t.Errorf("flushed %d (%v), want 1", n, err)
		}
		r.want("after the first is flushed", map[string]State{"in c>o b": Unanswered, "out b>c o": Unanswered, "out c>b ": Waiting})
		must(t, r.Map.Delete(bpf.FlowKeyOf(second, r.other, r.proto, bpf.WayIn)))
		if n, err := table.Flush(Filter{}); n != 0 || err != nil {
			t.Errorf("flushed %d (%v), want none", n, err)
		}
		r.want("after all are flushed", map[string]State{})
	})
}

func TestFilterMatches(t *testing.T) {
	flow := Flow{Proto: bpf.UDP, Client: ap("203.0.113.2:40000"), Frontend: ap("192.0.2.10:53"), Backend: ap("10.1.0.5:5353"), State: Closing}
	for _, tc := range []struct {
		name   string
		filter Filter
		want   bool
	}{
		{"nothing", Filter{}, true},
		{"its client", Filter{Client: netip.MustParsePrefix("203.0.113.0/24")}, true},
		{"another client", Filter{Client: netip.MustParsePrefix("203.0.112.0/24")}, false},
		{"a client of the other family", Filter{Client: netip.MustParsePrefix("::/0")}, false},
		{"its frontend", Filter{Frontend: Endpoint{flow.Frontend.Addr(), 53}}, true},
		{"its frontend's address", Filter{Frontend: Endpoint{Addr: flow.Frontend.Addr()}}, true},
		{"another port", Filter{Frontend: Endpoint{flow.Frontend.Addr(), 54}}, false},
		{"another frontend", Filter{Frontend: Endpoint{flow.Backend.Addr(), 53}}, false},
		{"its backend", Filter{Backend: Endpoint{flow.Backend.Addr(), 5353}}, true},
		{"another backend", Filter{Backend: Endpoint{flow.Frontend.Addr(), 5353}}, false},
		{"its protocol", Filter{Proto: bpf.UDP}, true},
		{"another protocol", Filter{Proto: bpf.TCP}, false},
		{"its state", Filter{States: []State{Closed, Closing}}, true},
		{"another state", Filter{States: []State{Closed}}, false},
		{"its state, and another backend", Filter{States: []State{Closing}, Backend: Endpoint{Port: 1}}, false},
	} {
		if got := tc.filter.matches(&flow); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
		if tc.filter.Empty() != (tc.name == "nothing") {
			t.Errorf("%s: empty is %v", tc.name, tc.filter.Empty())
		}
	}
}

func TestParseFilter(t *testing.T) {
	for s, want := range map[string]string{
		"203.0.113.2": "203.0.113.2/32", "203.0.113.2/24": "203.0.113.0/24", "2001:db8::1": "2001:db8::1/128", "2001:db8::1/64": "2001:db8::/64",
		"::ffff:203.0.113.2": "203.0.113.2/32", "::ffff:203.0.113.2/120": "203.0.113.0/24", "::/0": "::/0",
		"": "", "x": "", "203.0.113.2:80": "", "fe80::1%eth0": "", "203.0.113.2/33": "",
	} {
		got, err := ParseClient(s)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("client %q: %v (%v), want %q", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"192.0.2.10": "192.0.2.10", "192.0.2.10:80": "192.0.2.10:80", "2001:db8::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:80": "[2001:db8::1]:80",
		"::ffff:192.0.2.10": "192.0.2.10", "[::ffff:192.0.2.10]:80": "192.0.2.10:80",
		"": "", ":80": "", "192.0.2.10:0": "", "192.0.2.10:99999": "", "192.0.2.10:http": "", "[192.0.2.10]": "", "[fe80::1%eth0]:80": "", "[2001:db8::1": "",
	} {
		got, err := ParseEndpoint(s)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("endpoint %q: %v (%v), want %q", s, got, err, want)
		}
	}
	for _, state := range FlowStates() {
		if got, err := ParseState(state.String()); got != state || err != nil {
			t.Errorf("state %s: %s (%v)", state, got, err)
		}
	}
	if _, err := ParseState("waiting"); err == nil {
		t.Error("no flow is waiting")
	}
}

// What is read is written as something that is read to the same.
func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"192.0.2.10:80", "[2001:db8::1]:80", "[2001:db8::1]", "::ffff:1.2.3.4", "10.0.0.0/8", "2001:db8::/32", "::ffff:10.0.0.0/104", "fe80::1%lo"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := ParseEndpoint(s); err == nil {
			if again, err := ParseEndpoint(e.String()); err != nil || again != e || e.Addr.Is4In6() || e.Addr.Zone() != "" {
				t.Errorf("%q is %v, which is %v (%v)", s, e, again, err)
			}
		}
		if p, err := ParseClient(s); err == nil {
			if again, err := ParseClient(p.String()); err != nil || again != p || p.Addr().Is4In6() || !p.IsValid() || p != p.Masked() {
				t.Errorf("%q is %v, which is %v (%v)", s, p, again, err)
			}
		}
	})
}
