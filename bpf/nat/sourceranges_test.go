package nat

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsthop/firsthop/bpf"
)

func prefixes(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestServiceRangesAreRefused(t *testing.T) {
	f := NewFake(4096)
	w := newWriter(t, f)
	svc := cluster(1, "192.0.2.1:1")
	svc.VIPs = nil
	w.assign(0, svc)
	must(t, w.p.SetServiceRanges(prefixes("10.96.0.0/12", "fd00:96::/112"), prefixes("10.96.9.9/32")))
	w.carryOut()
	has := svc.Frontends[0]
	for _, c := range []struct {
		name, addr string
		proto      bpf.Proto
		want       Kind
	}{
		{"a frontend", has.AddrPort().String(), has.Proto, Translated},
		{"an address of the range", "10.97.7.7:80", bpf.TCP, Refused},
		{"another protocol", "10.97.7.7:80", bpf.UDP, Refused},
		{"the first address of the range", "10.96.0.0:80", bpf.TCP, Refused},
		{"the last one", "10.111.255.255:80", bpf.TCP, Refused},
		{"an IPv6 address of the range", "[fd00:96::77]:80", bpf.TCP, Refused},
		{"the address before the range", "10.95.255.255:80", bpf.TCP, NotOurs},
		{"the address after it", "10.112.0.0:80", bpf.TCP, NotOurs},
		{"an address that others serve", "10.96.9.9:80", bpf.TCP, NotOurs},
		{"a loopback address", "127.0.0.1:80", bpf.TCP, NotOurs},
	} {
		if got := mustRead(t, f).Lookup(bpf.FrontendKeyOf(netip.MustParseAddrPort(c.addr), c.proto)); got.Kind != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}

	// An init stage and a runtime that come later leave it as it is.
	for _, own := range []Indexes{InitIndexes, RuntimeIndexes} {
		if plan := NewPlanner(mustRead(t, f), own).Take(); !plan.Empty() {
			t.Errorf("a new writer of %v plans %+v", own, plan)
		}
	}
	w = newWriter(t, f)
	must(t, w.p.SetServiceRanges(prefixes("10.96.0.0/12", "10.200.0.0/16"), nil))
	w.carryOut()
	ranges, others := mustRead(t, f).ServiceRanges()
	if diff := cmp.Diff(prefixes("10.96.0.0/12", "10.200.0.0/16"), ranges, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || others != nil {
		t.Errorf("ranges (-want +got):\n%s\nothers %v", diff, others)
	}
}

func TestServiceRangesNeedCapacity(t *testing.T) {
	f := NewFake(4096)
	w := newWriter(t, f)
	must(t, w.p.SetServiceRanges(prefixes("10.96.0.0/12"), nil))
	w.carryOut()
	state := mustRead(t, f)
	state.Capacity.SourceRanges = 3
	p := NewPlanner(state, RuntimeIndexes)
	if err := p.SetServiceRanges(prefixes("10.96.0.0/12", "10.200.0.0/16"), prefixes("10.96.0.9/32", "10.96.0.10/32")); !errors.Is(err, ErrSourceRangesFull) {
		t.Errorf("four ranges where three have room: %v", err)
	}
	if plan := p.Take(); !plan.Empty() {
		t.Errorf("after the error: %+v", plan)
	}
	must(t, p.SetServiceRanges(prefixes("10.96.0.0/12", "10.200.0.0/16"), prefixes("10.96.0.9/32")))
	svc := cluster(1, "192.0.2.1:1")
	svc.SourceRanges = prefixes("10.96.0.0/12") // as many as, and the same as, those of index 0
	svc.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{svc.Frontends[0]: bpf.FrontendSourceRange}
	if _, err := p.Assign(0, svc); !errors.Is(err, ErrSourceRangesFull) {
		t.Errorf("a Service's ranges where none has room: %v", err)
	}
}

// A writer may be killed between any two writes.
func TestServiceRangesOfOthersAreNeverRefused(t *testing.T) {
	f := NewFake(4096)
	w := newWriter(t, f)
	other := bpf.FrontendKeyOf(netip.MustParseAddrPort("10.96.9.9:6443"), bpf.TCP)
	f.Observe = func(s *State) {
		if v := s.Lookup(other); v.Kind != NotOurs {
			t.Errorf("after write %d: %+v", f.Writes, v)
		}
	}
	must(t, w.p.SetServiceRanges(prefixes("10.96.0.0/12"), prefixes("10.96.9.9/32")))
	w.carryOut()
	must(t, w.p.SetServiceRanges(nil, nil))
	w.carryOut()
	must(t, w.p.SetServiceRanges(prefixes("10.96.0.0/12"), prefixes("10.96.9.9/32")))
	applied, err := Apply(f, w.p.Take())
	must(t, err)
	must(t, applied.Rollback())
	if f.Writes < 8 {
		t.Errorf("%d writes were seen", f.Writes)
	}
}
