package natinit

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel/memory"
	"github.com/firsthop/firsthop/natinit/attach"
)

// SeedConfig says what the table is to hold after the init stage.
type SeedConfig struct {
	Pins     bpf.Pins
	Sizes    bpf.Sizes // of maps that don't exist yet; those of sockets that are not given fit the node
	Features bpf.Features

	// Services are to be in the table. One that the runtime wrote already keeps
	// its index; what happens to its backends is for Merge to say.
	Services []nat.Service

	// Prune removes the services of the init stage that are not among Services,
	// and the frontends of those among them that they don't have any more.
	Prune bool

	// Merge gives the backends of a service that the runtime wrote: from those
	// that it has and those that the init stage would give it. nil, or an equal
	// result, leaves it alone.
	Merge func(svc nat.Service, have []netip.AddrPort) []netip.AddrPort
}

// SeededService says what happened to one Service.
type SeededService struct {
	Name      string           `json:"name"`
	Index     uint32           `json:"index"`
	Frontends []string         `json:"frontends"`
	Backends  []netip.AddrPort `json:"backends"`
	Former    []netip.AddrPort `json:"former_backends,omitempty"` // before; absent if the same
	Change    attach.Change    `json:"change"`
	Owner     Owner            `json:"owner"`
}

// Owner is who writes a service of the table.
type Owner string

// The writers.
const (
	OwnerInit    Owner = "init"
	OwnerRuntime Owner = "runtime"
)

// OwnerOf tells a service's writer by its index.
func OwnerOf(index uint32) Owner {
	if nat.InitIndexes.Contains(index) {
		return OwnerInit
	}
	return OwnerRuntime
}

// Seeded is a seed that traffic sees and that can still be taken back.
type Seeded struct {
	Maps     *bpf.Maps
	Services []SeededService

	Recovered bool  // Recover has exchanged programs
	Left      error // what Recover left behind, nil: nothing

	pins    bpf.Pins
	found   *bpf.Maps // Maps, until Recover exchanges them
	applied *nat.Applied
	final   bool
}

// Seed creates what is missing of the table and brings the Services into it.
// On an error nothing has changed. Errors match bpf.ErrForeign,
// bpf.ErrNewerLayout or nat.ErrFull where that is the cause.
func Seed(cfg SeedConfig) (*Seeded, error) {
	if err := repinMaps(cfg.Pins); err != nil {
		return nil, attach.ExplainRights(err)
	}
	limit, _ := memory.Limit("")
	maps, err := bpf.EnsureMaps(cfg.Pins, bpf.NodeSizes(cfg.Sizes, memory.Total(""), limit))
	if err != nil {
		return nil, attach.ExplainRights(err)
	}
	s := &Seeded{Maps: maps, found: maps, pins: cfg.Pins}
	if err := s.write(cfg); err != nil {
		undo := maps.Discard(cfg.Pins)
		return nil, errors.Join(attach.ExplainRights(err), undo, maps.Close())
	}
	return s, nil
}

func (s *Seeded) write(cfg SeedConfig) error {
	store := nat.NewKernel(s.Maps, cfg.Features)
	state, err := s.read(store)
	if err != nil {
		return err
	}
	plan, services, err := PlanSeed(state, cfg)
	if err != nil {
		return err
	}
	s.Services = services
	s.applied, err = nat.Apply(store, plan)
	return err
}

// read copies the table. One that was created just now is known to be empty:
// to walk its buckets would take as long as to write the seed.
func (s *Seeded) read(store *nat.Kernel) (*nat.State, error) {
	if len(s.Maps.Created) == len(bpf.MapNames()) {
		return nat.NewState(s.Maps.Services()), nil
	}
	return store.Read()
}

// PlanSeed plans the seed without writing anything.
func PlanSeed(state *nat.State, cfg SeedConfig) (*nat.Plan, []SeededService, error) {
	p := nat.NewPlanner(state, nat.InitIndexes)
	var out []SeededService
	for _, svc := range cfg.Services {
		before, existed, err := p.Owner(svc)
		if err != nil {
			return nil, nil, err
		}
		former := p.State().Backends(p.State().ServiceStates[bpf.ServiceStateAt(before, false)])
		if err := ensure(p, svc, cfg.Merge, before, former); err != nil {
			return nil, nil, err
		}
		index, _, err := p.Owner(svc)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, describe(p.State(), svc, index, existed, former))
	}
	if cfg.Prune {
		out = append(out, pruneFrontends(p, cfg.Services, out)...)
		out = append(out, prune(p, out)...)
	}
	return p.Plan(), out, nil
}

// notWanted stands for the name of what is pruned: the table has no names.
const notWanted = "not wanted any more"

// pruneFrontends plans that what the wanted services had beside their frontends
// goes. seeded belongs to them, one by one.
func pruneFrontends(p *nat.Planner, wanted []nat.Service, seeded []SeededService) []SeededService {
	var out []SeededService
	for i, svc := range wanted {
		if seeded[i].Owner != OwnerInit {
			continue
		}
		surplus := slices.DeleteFunc(p.State().FrontendsOf(seeded[i].Index), func(k bpf.FrontendKey) bool { return slices.Contains(svc.Frontends, k) })
		if len(surplus) == 0 {
			continue
		}
		gone := SeededService{Name: notWanted, Index: seeded[i].Index, Owner: OwnerInit, Change: attach.Removed}
		for _, k := range surplus {
			gone.Frontends = append(gone.Frontends, k.String())
		}
		p.RemoveFrontends(surplus)
		seeded[i].Frontends = slices.DeleteFunc(seeded[i].Frontends, func(f string) bool { return slices.Contains(gone.Frontends, f) })
		out = append(out, gone)
	}
	return out
}

// prune plans that the init stage's other services go.
func prune(p *nat.Planner, wanted []SeededService) []SeededService {
	var out []SeededService
	for _, index := range p.State().Indexes() {
		if OwnerOf(index) != OwnerInit || slices.ContainsFunc(wanted, func(s SeededService) bool { return s.Index == index }) {
			continue
		}
		gone := describe(p.State(), nat.Service{Name: notWanted}, index, true, nil)
		gone.Change, gone.Former, gone.Backends = attach.Removed, gone.Backends, nil
		p.Remove(index)
		out = append(out, gone)
	}
	return out
}

// ensure brings one Service into the plan: as the init stage's own, or, where
// the runtime has it already, by merging backends.
func ensure(p *nat.Planner, svc nat.Service, merge func(nat.Service, []netip.AddrPort) []netip.AddrPort, index uint32, have []netip.AddrPort) error {
	err := p.Ensure(svc)
	if !errors.Is(err, nat.ErrOwned) || merge == nil {
		return ignoreOwned(err)
	}
	want := merge(svc, have)
	if len(want) == 0 {
		return nil
	}
	return p.Replace(index, want)
}

func ignoreOwned(err error) error {
	if errors.Is(err, nat.ErrOwned) {
		return nil
	}
	return err
}

func describe(state *nat.State, svc nat.Service, index uint32, existed bool, former []netip.AddrPort) SeededService {
	s := SeededService{Name: svc.Name, Index: index, Owner: OwnerOf(index), Change: attach.Kept}
	for _, k := range state.FrontendsOf(index) {
		s.Frontends = append(s.Frontends, k.String())
	}
	s.Backends = state.Backends(state.ServiceStates[bpf.ServiceStateAt(index, false)])
	switch {
	case !existed:
		s.Change = attach.Added
	case !sameSet(former, s.Backends):
		s.Change = attach.Changed
		s.Former = former
	}
	return s
}

func sameSet(a, b []netip.AddrPort) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// Commit makes the seed final: old backend sets go after a grace period. An
// error means that they are left for the next plan to collect, no more.
func (s *Seeded) Commit() error {
	s.final = true
	return s.applied.Commit()
}

// Rollback takes the seed back, and removes the maps that it created. After
// Commit it does nothing.
func (s *Seeded) Rollback() error {
	if s.final {
		return nil
	}
	err := errors.Join(s.applied.Rollback(), s.found.Discard(s.pins))
	if err != nil {
		return fmt.Errorf("take the seed back: %w", err)
	}
	return nil
}

// Close closes the maps' handles. The table stays.
func (s *Seeded) Close() error { return errors.Join(s.Release(), s.Maps.Close()) }

// Release closes the handles of what Recover has exchanged Maps for; after it, nothing is taken back any more.
func (s *Seeded) Release() error {
	if s.found == s.Maps {
		return nil
	}
	found := s.found
	s.found = s.Maps
	return found.Close()
}
