package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// passAfter makes a pass as of a time after now.
func (c *testCollector) passAfter(d time.Duration) Status {
	c.rig.t.Helper()
	c.now = func() uint64 { return Now() + uint64(d) }
	c.Pass()
	st := c.Status()
	must(c.rig.t, st.Error)
	return st
}

// eachRig runs a test for both families and some protocols, each with a map that is read in batches and one that is not.
func eachRig(t *testing.T, protos []bpf.Proto, test func(t *testing.T, r *rig)) {
	for name, f := range families {
		for _, p := range protos {
			t.Run(name+" "+p.String(), func(t *testing.T) {
				r := newRig(t, f, p)
				r.Batch = name == "IPv4" && lab.KernelFeatures().Batch
				test(t, r)
			})
		}
	}
}

var all = []bpf.Proto{bpf.TCP, bpf.UDP, bpf.SCTP}

const day = 24 * time.Hour

// step is something that happens to a flow.
type step func(*rig)

// Each flow lives until just before its timeout, and is gone with all of its entries just after it.
func TestPassRemovesFlowsThatHaveEnded(t *testing.T) {
	in := func(s signal) step { return func(r *rig) { r.in(r.frontend, s) } }
	leave := func(s signal) step { return func(r *rig) { r.leave(s) } }
	answer := func(s signal) step { return func(r *rig) { r.answer(s) } }
	comeBack := func(s signal) step { return func(r *rig) { r.comeBack(s) } }
	type ages map[bpf.Proto]time.Duration
	cases := []struct {
		name    string
		steps   []step
		entries int
		kept    ages
	}{
		{"no answer", []step{in(begins)}, 3, ages{bpf.TCP: time.Minute, bpf.UDP: 30 * time.Second, bpf.SCTP: time.Minute}},
		{"answered", []step{in(begins), answer(begins), in(data)}, 3, ages{bpf.TCP: day, bpf.UDP: 3 * time.Minute, bpf.SCTP: 210 * time.Second}},
		{"ended by the client", []step{in(begins), answer(begins), in(fin)}, 3, ages{bpf.TCP: time.Hour, bpf.SCTP: 210 * time.Second}},
		{"ended by the backend", []step{in(begins), answer(begins), answer(fin)}, 3, ages{bpf.TCP: time.Hour, bpf.SCTP: 210 * time.Second}},
		{"ended by both", []step{in(begins), answer(begins), in(fin), answer(fin)}, 3, ages{bpf.TCP: 2 * time.Minute, bpf.SCTP: 2 * time.Minute}},
		{"cut off from outside", []step{in(begins), answer(begins), in(rst)}, 3, ages{bpf.TCP: 2 * time.Minute, bpf.SCTP: 2 * time.Minute}},
		{"cut off by the backend", []step{in(begins), answer(rst)}, 3, ages{bpf.TCP: 10 * time.Second, bpf.SCTP: 10 * time.Second}},
		{"elsewhere, no answer", []step{in(begins), leave(begins)}, 4, ages{bpf.TCP: time.Minute, bpf.UDP: 30 * time.Second, bpf.SCTP: time.Minute}},
		{"elsewhere, answered", []step{in(begins), leave(begins), comeBack(begins)}, 4, ages{bpf.TCP: day, bpf.UDP: 3 * time.Minute, bpf.SCTP: 210 * time.Second}},
		{"elsewhere, ended by both", []step{in(begins), leave(begins), comeBack(begins), in(fin), leave(fin), comeBack(fin)}, 4, ages{bpf.TCP: 2 * time.Minute, bpf.SCTP: 2 * time.Minute}},
		{"elsewhere, cut off", []step{in(begins), leave(begins), comeBack(rst)}, 4, ages{bpf.TCP: 10 * time.Second, bpf.SCTP: 10 * time.Second}},
	}
	eachRig(t, all, func(t *testing.T, r *rig) {
		for _, tc := range cases {
			kept, has := tc.kept[r.proto]
			if !has {
				continue
			}
			for _, s := range tc.steps {
				s(r)
			}
			c := r.collector(Config{})
			// Entries may have been written some seconds ago, on a slow machine.
			if st := c.passAfter(kept - 5*time.Second); st.Entries != tc.entries || st.Collected != 0 {
				t.Errorf("%s, before its time: %+v, want %d entries: %v", tc.name, st, tc.entries, r.entries())
			}
			if st := c.passAfter(kept + time.Millisecond); st.Entries != 0 || st.Collected != 1 || len(st.Flows) != 0 {
				t.Errorf("%s, after its time: %+v", tc.name, st)
			}
			r.want(tc.name+", after its time", map[string]State{})
		}
	})
}

// A flow of which the kernel has evicted entries is kept by the others, as they restore them.
func TestPassKeepsFlowsByTheEntriesThatAreLeft(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.TCP}, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		r.leave(begins)
		r.comeBack(begins)
		r.evict(r.client, r.frontend, bpf.WayIn)
		c := r.collector(Config{})
		c.passAfter(day - time.Minute)
		back := Unanswered // the first second tells it nothing
		r.want("without the entry of packets in", map[string]State{"out b>c f": Established, "out c>b n": Established, "in b>n c": back})
		r.evict(r.backend, r.client, bpf.WayOut)
		c.passAfter(day - time.Minute)
		r.want("without the client's pair", map[string]State{"out c>b n": Established, "in b>n c": back})
		r.evict(r.backend, r.node, bpf.WayIn)
		c.passAfter(day - time.Minute)
		r.want("with one entry", map[string]State{"out c>b n": Established})
		c.passAfter(day + time.Minute)
		r.want("after all", map[string]State{})
	})
}

func (r *rig) evict(src, dst netip.AddrPort, w bpf.Way) {
	r.t.Helper()
	must(r.t, r.Map.Delete(bpf.FlowKeyOf(src, dst, r.proto, w)))
}

// So is masquerade, where the answers' entry is left only.
func TestPassKeepsMasqueradeByItsFlow(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.TCP}, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		r.leave(begins)
		r.comeBack(begins)
		r.evict(r.client, r.backend, bpf.WayOut)
		r.collector(Config{}).passAfter(day - time.Minute)
		r.want("without the entry of packets to the backend", map[string]State{"in c>f b": Established, "out b>c f": Established, "in b>n c": Unanswered})
	})
}

// The mark of packets that never left this node sees none of them. It goes with its flow, not before, not long after.
func TestPassKeepsMarkersWithTheirFlows(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.TCP}, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		r.answer(begins)
		c := r.collector(Config{})
		c.passAfter(day - time.Minute)
		r.want("while the flow lives", map[string]State{"in c>f b": Established, "out b>c f": Established, "out c>b ": Waiting})
		r.evict(r.client, r.frontend, bpf.WayIn)
		r.evict(r.backend, r.client, bpf.WayOut)
		c.passAfter(5 * time.Second)
		r.want("at first", map[string]State{"out c>b ": Waiting})
		c.passAfter(11 * time.Second)
		r.want("without its flow", map[string]State{})
	})
}

// A client that uses its port for another frontend of the same backend takes the entry of packets out with it.
func TestPassLeavesEntriesToTheFlowThatHasThemNow(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.TCP}, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		r.leave(begins)
		r.comeBack(begins)
		r.comeBack(rst)
		r.in(r.other, begins)
		r.answer(begins)
		c := r.collector(Config{})
		now := map[string]State{"in c>o b": Established, "out b>c o": Established, "out c>b ": Waiting}
		c.passAfter(5 * time.Second)
		if got := r.entries(); got["in c>f b"] != Reset || len(got) != 5 {
			t.Errorf("at first: %v", got)
		}
		c.passAfter(11 * time.Second)
		now["in b>n c"] = Closed // the reset came in there
		r.want("after the former flow's end", now)
		delete(now, "in b>n c")
		c.passAfter(121 * time.Second)
		r.want("after the former flow's time", now)
		c.passAfter(day + time.Minute)
		r.want("after all", map[string]State{})
	})
}

// A packet that comes after an entry was read keeps it.
func TestPassKeepsWhatHasSeenAPacketMeanwhile(t *testing.T) {
	eachRig(t, all, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		var read []Entry
		must(t, r.read(func(e Entry) bool { read = append(read, e); return true }))
		r.answer(begins)
		cfg := Config{Table: r.Table}
		p := pass{Config: &cfg, now: Now() + uint64(62*time.Second), flows: map[Kind]int{}}
		if p.now-read[0].Flow.Seen < uint64(time.Minute) {
			t.Fatal("it is not overdue")
		}
		for _, e := range read {
			must(t, p.judgeOne(e))
		}
		if got := r.entries(); len(got) != 3 {
			t.Errorf("left: %v", got)
		}
	})
}

// Whichever half a pass meets first, the one for packets out goes before the one for packets in.
func TestGroupMembersAreInOrder(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.TCP)
	r.in(r.frontend, begins)
	r.leave(begins)
	must(t, r.read(func(e Entry) bool {
		if e.Flow.Flags&bpf.FlowMasquerade == 0 {
			g, err := r.groupOf(e)
			must(t, err)
			var got []string
			for _, m := range g.members() {
				got = append(got, m.Key.Way.String()+" "+role(r.family, m))
			}
			if want := []string{"out b>c f", "in c>f b", "out c>b n", "in b>n "}; !slices.Equal(got, want) {
				t.Errorf("packets %s: %q", e.Key.Way, got)
			}
		}
		return true
	}))
}

// A packet that comes after an entry was read keeps it where it is all that is left of its flow, too.
func TestPassLooksAgainAtLoneEntries(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.TCP)
	r.in(r.frontend, begins)
	r.evict(r.client, r.frontend, bpf.WayIn)
	r.evict(r.client, r.backend, bpf.WayOut)
	e, err := r.lookupEntry(r.backend, r.client, bpf.WayOut)
	must(t, err)
	cfg := Config{Table: r.Table}
	p := pass{Config: &cfg, now: e.Flow.Seen + uint64(61*time.Second), flows: map[Kind]int{}}
	fresh := e
	fresh.Flow.Seen = p.now
	must(t, r.Map.Put(fresh.Key, fresh.Flow))
	must(t, p.judgeOne(e))
	r.want("with a packet since", map[string]State{"out b>c f": Unanswered})
	must(t, r.Map.Put(e.Key, e.Flow))
	must(t, p.judgeOne(fresh))
	r.want("with another value", map[string]State{"out b>c f": Unanswered})
	must(t, p.judgeOne(e))
	r.want("without one", map[string]State{})
}

func (r *rig) lookupEntry(src, dst netip.AddrPort, w bpf.Way) (Entry, error) {
	e := Entry{Key: bpf.FlowKeyOf(src, dst, r.proto, w)}
	return e, r.Map.Lookup(e.Key, &e.Flow)
}

// Programs may note a packet after the pass has read the clock.
func TestPassKeepsWhatIsYoungerThanItself(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.UDP)
	r.in(r.frontend, begins)
	c := r.collector(Config{})
	if st := c.passAfter(-time.Minute); st.Entries != 3 {
		t.Errorf("%+v", st)
	}
}

func TestPassForgetsFlowsOfUDPWhoseBackendIsGone(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.TCP, bpf.UDP}, func(t *testing.T, r *rig) {
		r.in(r.frontend, begins)
		r.leave(begins)
		r.comeBack(begins)
		asked := 0
		gone := false
		c := r.collector(Config{Gone: func(frontend netip.AddrPort, p bpf.Proto, backend netip.AddrPort) bool {
			if asked++; frontend != r.frontend || p != bpf.UDP || backend != r.backend {
				t.Errorf("asked for %s %s %s", frontend, p, backend)
			}
			return gone
		}})
		if st := c.passAfter(0); st.Entries != 4 || st.Forgotten != 0 {
			t.Errorf("while its backend serves: %+v", st)
		}
		gone = true
		st := c.passAfter(0)
		if r.proto == bpf.TCP {
			if asked != 0 || st.Entries != 4 || st.Forgotten != 0 {
				t.Errorf("connections live on: %+v", st)
			}
			return
		}
		if asked != 2 || st.Forgotten != 1 || st.Collected != 0 || st.Entries != 0 {
			t.Errorf("after its backend went, with %d questions: %+v", asked, st)
		}
		r.want("after its backend went", map[string]State{})
	})
}

// A client may have begun anew since its flow was read.
func TestPassKeepsFlowsThatBeganAnew(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.UDP)
	r.in(r.frontend, begins)
	e, err := r.lookupEntry(r.client, r.frontend, bpf.WayIn)
	must(t, err)
	former := e
	former.Flow.Addr = bpf.AddressOf(r.node.Addr())
	cfg := Config{Table: r.Table, Gone: func(_ netip.AddrPort, _ bpf.Proto, backend netip.AddrPort) bool { return backend != r.backend }}
	p := pass{Config: &cfg, now: Now(), gone: map[leads]bool{}, flows: map[Kind]int{}}
	if !p.leadsNowhere(former) {
		t.Error("the former backend is not gone")
	}
	must(t, p.judgeOne(former))
	if got := r.entries(); len(got) != 3 {
		t.Errorf("left: %v", got)
	}
}

// A flow that another proxy began is kept at any age, and forgotten with its backend.
func TestPassKeepsWhatIsLeftToTheStack(t *testing.T) {
	eachRig(t, []bpf.Proto{bpf.UDP, bpf.SCTP}, func(t *testing.T, r *rig) {
		must(t, r.Map.Put(bpf.FlowKeyOf(r.client, r.frontend, r.proto, bpf.WayIn),
			bpf.Flow{Addr: bpf.AddressOf(r.backend.Addr()), Port: bpf.PortOf(r.backend.Port()), Flags: bpf.FlowStack, Seen: Now()}))
		r.in(r.frontend, begins)
		gone := false
		c := r.collector(Config{Gone: func(netip.AddrPort, bpf.Proto, netip.AddrPort) bool { return gone }})
		st := c.passAfter(100 * day)
		r.want("at any age", map[string]State{"in c>f b": Stack})
		if st.Left() != 1 || st.Flows[Kind{r.proto, Stack}] != 1 {
			t.Errorf("%+v", st)
		}
		gone = true
		c.passAfter(0)
		if r.proto == bpf.UDP {
			r.want("without its backend", map[string]State{})
		}
	})
}

func TestStatusCountsFlows(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.TCP)
	r.in(r.frontend, begins)
	r.answer(begins)
	r.client = netip.AddrPortFrom(r.client.Addr(), 41000)
	r.in(r.frontend, begins)
	c := r.collector(Config{})
	st := c.passAfter(time.Second)
	if st.Entries != 6 || st.Capacity != int(r.Map.MaxEntries()) || len(st.Flows) != 2 || st.Flows[Kind{bpf.TCP, Established}] != 1 || st.Flows[Kind{bpf.TCP, Unanswered}] != 1 ||
		st.Passes != 1 || st.LastPass.IsZero() || st.Took <= 0 || st.Busy != st.Took {
		t.Errorf("%+v", st)
	}
}

// A map that cannot be read is an error once in the log, and each time in the status.
func TestPassReportsErrors(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.TCP)
	log, said := lab.NewLog()
	broken, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 32, MaxEntries: 1})
	must(t, err)
	c := New(Config{Log: log, Table: Table{Map: broken, Batch: true}})
	must(t, broken.Close())
	for range 2 {
		if pause := c.Pass(); pause < minPause || c.Status().Error == nil {
			t.Errorf("pause %s, status %+v", pause, c.Status())
		}
	}
	if said.Count("WARN") != 1 {
		t.Errorf("the log says\n%s", said)
	}
	_ = r
}

// A change of endpoints is followed by a pass within a second, whenever the next one would be.
func TestRunPassesSoonAfterEndpointsAreGone(t *testing.T) {
	r := newRig(t, families["IPv4"], bpf.UDP)
	c := r.collector(Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	lab.Await(t, "the first pass", func() bool { return c.Status().Passes == 1 })
	asked := time.Now()
	for range 100 {
		c.EndpointsGone()
	}
	lab.Await(t, "a pass for the change", func() bool { return c.Status().Passes > 1 })
	if took := time.Since(asked); took < gatherTime || took > 5*time.Second {
		t.Errorf("the pass came after %s", took)
	}
	cancel()
	<-done
}

func TestPauseAfter(t *testing.T) {
	for _, tc := range []struct {
		took time.Duration
		full float64
		want time.Duration
	}{
		{0, 0, time.Minute},
		{0, 0.375, 35 * time.Second},
		{0, 0.75, 10 * time.Second},
		{0, 1, 10 * time.Second},
		{210 * time.Millisecond, 1, 10500 * time.Millisecond},
		{4 * time.Second, 0, 200 * time.Second},
	} {
		if got := pauseAfter(tc.took, tc.full); got != tc.want {
			t.Errorf("after %s, %v full: %s, want %s", tc.took, tc.full, got, tc.want)
		}
	}
}
