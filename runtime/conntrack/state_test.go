package conntrack

import (
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// What becomes of an entry with those of its flow, at a time after its last packet.
func TestGroupOver(t *testing.T) {
	const masquerade, fin, finOther, reset, replied = bpf.FlowMasquerade, bpf.FlowFin, bpf.FlowFinOther, bpf.FlowReset, bpf.FlowReplied
	const s, m, h = time.Second, time.Minute, time.Hour
	begun := uint64(time.Hour)
	// An entry that saw its last packet some time after the flow's.
	at := func(after time.Duration, flags bpf.FlowFlags) *bpf.Flow {
		return &bpf.Flow{Port: bpf.PortOf(80), Flags: flags, Seen: begun + uint64(after)}
	}
	marker := &bpf.Flow{Flags: masquerade, Seen: begun}
	for _, tc := range []struct {
		name            string
		proto           bpf.Proto
		entry           *bpf.Flow
		partner, client *bpf.Flow
		superseded      bool
		kept            time.Duration // -1: always
	}{
		{"nothing but a SYN", bpf.TCP, at(0, 0), at(0, 0), nil, false, m},
		{"the partner knows of the answer", bpf.TCP, at(0, 0), at(0, replied), nil, false, 24 * h},
		{"the partner has seen more", bpf.TCP, at(0, 0), at(10*s, 0), nil, false, 70 * s},
		{"the entry has seen more", bpf.TCP, at(10*s, 0), at(0, 0), nil, false, 70 * s},
		{"each half knows of one FIN", bpf.TCP, at(0, replied|fin), at(0, replied|fin), nil, false, 2 * m},
		{"both halves know of the same FIN", bpf.TCP, at(0, replied|fin), at(0, replied|finOther), nil, false, h},
		{"the partner knows of both FINs", bpf.TCP, at(0, replied), at(0, replied|fin|finOther), nil, false, 2 * m},
		{"the partner knows of the RST", bpf.TCP, at(0, replied), at(0, replied|reset), nil, false, 10 * s},
		{"a RST after both FINs", bpf.TCP, at(0, replied|fin|finOther|reset), nil, nil, false, 10 * s},
		{"a FIN without an answer", bpf.TCP, at(0, fin), nil, nil, false, h},
		{"UDP", bpf.UDP, at(0, 0), at(0, 0), nil, false, 30 * s},
		{"UDP with answers", bpf.UDP, at(0, 0), at(0, replied), nil, false, 3 * m},
		{"SCTP", bpf.SCTP, at(0, 0), at(0, 0), nil, false, m},
		{"SCTP with answers", bpf.SCTP, at(0, replied), at(0, replied), nil, false, 210 * s},
		{"SCTP that is shut down", bpf.SCTP, at(0, replied|fin), at(0, replied|finOther), nil, false, 210 * s},
		{"SCTP that was", bpf.SCTP, at(0, replied|reset), at(0, replied|reset), nil, false, 10 * s},
		{"another proxy's", bpf.UDP, at(0, bpf.FlowStack), nil, nil, false, -1},
		{"another proxy's that is cut off", bpf.SCTP, at(0, bpf.FlowStack|reset), nil, nil, false, -1},
		{"a marker of a flow", bpf.TCP, marker, nil, at(0, 0), false, -1},
		{"a marker of none", bpf.TCP, marker, nil, nil, false, 10 * s},
		{"masquerade of a flow", bpf.UDP, at(0, masquerade|replied), at(0, masquerade), at(0, 0), false, -1},
		{"masquerade of a flow, half evicted", bpf.UDP, at(0, masquerade), nil, at(0, 0), false, -1},
		{"masquerade of a former flow", bpf.UDP, at(0, masquerade), nil, at(0, 0), true, 30 * s},
		{"masquerade of none", bpf.UDP, at(0, masquerade|replied), at(0, masquerade), nil, false, 3 * m},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := group{Entry: Entry{bpf.FlowKey{Proto: tc.proto}, *tc.entry}, partner: tc.partner, client: tc.client, superseded: tc.superseded}
			if tc.kept < 0 {
				if g.over(begun + uint64(1000*h)) {
					t.Error("it is not kept")
				}
				return
			}
			if g.over(begun + uint64(tc.kept)) {
				t.Errorf("it is gone after %s", tc.kept)
			}
			if !g.over(begun + uint64(tc.kept) + 1) {
				t.Errorf("it is kept for longer than %s", tc.kept)
			}
		})
	}
}

// A flow that is over is noticed by one of its entries alone, which is what makes a pass look at both: programs note ends
// in both, answers maybe in one.
func TestOverdueMissesNoFlow(t *testing.T) {
	for flags := range bpf.FlowFlags(1 << 6) {
		for _, p := range all {
			e := bpf.Flow{Port: bpf.PortOf(80), Flags: flags}
			other := joined(bpf.Flow{Port: bpf.PortOf(80), Flags: flags & bpf.FlowReset}, e)
			other.Flags &^= bpf.FlowReplied
			g := group{Entry: Entry{bpf.FlowKey{Proto: p}, e}, partner: &other}
			for _, age := range []time.Duration{11 * time.Second, 31 * time.Second, 61 * time.Second, 121 * time.Second, 181 * time.Second, 211 * time.Second, time.Hour + 1, day + 1} {
				if g.over(uint64(age)) && !overdue(p, e, uint64(age)) && !overdue(p, other, uint64(age)) {
					t.Errorf("%s with flags %b is missed after %s", p, flags, age)
				}
			}
		}
	}
}

func TestAge(t *testing.T) {
	for now, want := range map[uint64]time.Duration{5: 0, 7: 0, 8: 1, 107: 100} {
		if got := Age(bpf.Flow{Seen: 7}, now); got != want {
			t.Errorf("at %d: %d, want %d", now, got, want)
		}
	}
}

func TestStatesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range states {
		text, err := s.MarshalText()
		if err != nil || len(text) == 0 || seen[string(text)] {
			t.Errorf("state %d is %q (%v)", s, text, err)
		}
		seen[string(text)] = true
	}
}
