package services

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// planned writes changes as they come, by the index that each Port got.
type planned struct {
	fake    *nat.Fake
	planner *nat.Planner
	index   map[PortKey]uint32
}

func newPlanned(t *testing.T) *planned {
	fake := nat.NewFake(4096)
	state, err := fake.Read()
	if err != nil {
		t.Fatal(err)
	}
	return &planned{fake, nat.NewPlanner(state, nat.RuntimeIndexes), map[PortKey]uint32{}}
}

func (p *planned) write(t *testing.T, changes []Change) *nat.State {
	t.Helper()
	stays := map[PortKey]bool{}
	for _, c := range changes {
		for i := range c.After {
			stays[c.After[i].Key] = true
		}
	}
	for _, c := range changes {
		for i := range c.Before {
			if key := c.Before[i].Key; !stays[key] {
				p.planner.Remove(p.index[key])
				delete(p.index, key)
			}
		}
	}
	for _, c := range changes {
		for i := range c.After {
			index, err := p.planner.Assign(p.index[c.After[i].Key], c.After[i].Service)
			if err != nil {
				t.Fatal(err)
			}
			p.index[c.After[i].Key] = index
		}
	}
	applied, err := nat.Apply(p.fake, p.planner.Take())
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
	state, err := p.fake.Read()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// What a Table wants and what is written of it, change by change, lead every
// connection to the same.
func TestWhatIsWrittenIsWhatIsWanted(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 11))
		table, written := NewTable(randomNode(r)), newPlanned(t)
		svcs, sls := map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		for step := range 200 {
			state := written.write(t, randomChange(r, table, svcs, sls))
			if step%5 == 0 {
				compareWith(t, table, state)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func compareWith(t *testing.T, table *Table, state *nat.State) {
	t.Helper()
	wanted := map[bpf.FrontendKey]bool{}
	for _, ports := range table.All() {
		for _, p := range ports {
			for _, k := range p.Frontends {
				wanted[k] = true
				want, _ := judge(table, netip.Addr{}, k)
				if p.Flags[k]&bpf.FrontendSourceRange != 0 {
					want, _ = judge(table, p.SourceRanges[0].Addr(), k)
				}
				if got := verdictOf(state.Lookup(k)); got != want {
					t.Errorf("%v of %v is written to lead to %s, wanted is %s", k, p.Key, got, want)
				}
			}
			for _, a := range p.VIPs {
				wanted[bpf.VIPKeyOf(a)] = true
			}
		}
	}
	for k := range state.Frontends {
		if !wanted[k] {
			t.Errorf("%v is written, but not wanted", k)
		}
		delete(wanted, k)
	}
	for k := range wanted {
		t.Errorf("%v is wanted, but not written", k)
	}
}
