package natinit

import (
	"errors"
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/attach"
)

// Grow gives a table more capacity while it serves: larger maps are filled with
// the same content, then the programs are exchanged for such that use them, the
// way back first, then the pins lead to them. No connection is refused on the
// way, and killed anywhere, the next init or run brings table and programs
// together again. b.Maps is the table as it is; the caller holds its lock.
//
// Maps of sockets are written by programs meanwhile, so their programs are
// exchanged twice: first for such that write to the larger maps and look into
// both, and, when all of the smaller ones is copied, for such that know them no
// more. A socket is found at each instant. Killed between the two, Recover
// goes on from there at the next start.
//
// It returns the table that the programs read from now on, for the caller to
// write to, and closes neither. On an error that is the former one, and all is
// as it was; only where the former programs could not be brought back it is the
// new one. An error beside a new table says what was left behind.
func Grow(cfg attach.Config, b attach.Balancer, sizes bpf.Sizes) (*bpf.Maps, error) {
	old := b.Maps
	grown, err := old.Grow(sizes)
	if err != nil {
		return old, attach.ExplainRights(err)
	}
	if len(grown.Created) == 0 {
		return grown, nil
	}
	if err := fill(b.Features, old, grown); err != nil {
		return old, errors.Join(fmt.Errorf("fill the larger table: %w", err), grown.Close())
	}
	return exchange(cfg, b, grown, old, false)
}

// exchange has the programs use grown instead of the table b.Maps, as Grow says, without losing what they remember of
// sockets in former; with spill even where grown has no room for all. It closes grown unless it returns that.
func exchange(cfg attach.Config, b attach.Balancer, grown, former *bpf.Maps, spill bool) (*bpf.Maps, error) {
	old := b.Maps
	created := slices.Clone(grown.Created)
	sockets, err := grown.Outgrow(former)
	if err == nil {
		err = grown.Stage(cfg.Pins)
	}
	if err != nil {
		return old, errors.Join(attach.ExplainRights(err), grown.Close())
	}
	b.Maps = grown
	cfg.Programs = b
	a, err := attach.Attach(cfg)
	if err != nil {
		if sockets { // some of the programs may have been attached
			err = errors.Join(err, grown.CopySockets(former, b.Features, true))
		}
		return old, errors.Join(err, grown.Unstage(cfg.Pins), grown.Close())
	}
	defer a.Close()
	if err := install(cfg, b, old, former, sockets, spill); err != nil {
		back := a.Rollback()
		err = errors.Join(err, back, grown.Unstage(cfg.Pins))
		if back != nil && slices.ContainsFunc(created, func(name bpf.MapName) bool { return attach.InUse(cfg, grown.Map(name)) }) {
			return grown, err
		}
		if sockets {
			err = errors.Join(err, grown.CopySockets(former, b.Features, true))
		}
		return old, errors.Join(err, grown.Close())
	}
	err = a.Commit()
	if sockets {
		err = errors.Join(err, settle(cfg, b, former, spill))
	}
	return grown, err
}

// install gives the pins to the larger maps, which have all that the smaller ones had.
func install(cfg attach.Config, b attach.Balancer, old, former *bpf.Maps, sockets, spill bool) error {
	if sockets {
		if err := former.CopySockets(b.Maps, b.Features, spill); err != nil {
			return fmt.Errorf("fill the larger maps of sockets: %w", err)
		}
	}
	return b.Maps.Install(cfg.Pins, old)
}

// settle exchanges the programs that look into two generations of the maps of sockets for such that look into the last
// one, which has all by then: nothing has written to the former since the programs that knew no other are detached.
func settle(cfg attach.Config, b attach.Balancer, former *bpf.Maps, spill bool) error {
	// Without links (Linux 5.8) the former programs were attached beside the others until now, and have written.
	copied := former.CopySockets(b.Maps, b.Features, spill)
	b.Maps.Settle()
	absorbed := b.Maps.AbsorbOverflow(b.Features)
	a, err := attach.Attach(cfg)
	if err != nil {
		return errors.Join(copied, absorbed, err)
	}
	return errors.Join(copied, absorbed, a.Commit(), a.Close())
}

// Recover ends what a Grow that was killed has begun: attached programs remember sockets in maps that are not those of
// the table. Where these are larger, which they are until Grow has moved the pins, the table gets them: the smaller ones
// may have no room for what has come. s.Maps is what to attach programs for afterwards; cfg and b are for s.Maps as it
// was. What finds no room even so goes into the LRU hashes.
//
// On an error all is as it was. Else s.Recovered says whether programs were exchanged, which Rollback does not take back, and
// s.Left what was left behind.
func (s *Seeded) Recover(cfg attach.Config, b attach.Balancer) error {
	if len(b.Hooks()) == 0 {
		return nil
	}
	progs, err := attach.PinnedPrograms(cfg.Pins)
	if err != nil {
		return attach.ExplainRights(err)
	}
	defer attach.CloseAll(progs)
	left, err := b.Maps.OutgrownBy(progs)
	if err != nil || left == nil {
		return attach.ExplainRights(err)
	}
	grown, former, err := b.Maps.Rejoin(left)
	if err = errors.Join(err, left.Close()); err != nil {
		return err
	}
	s.Maps, err = exchange(cfg, b, grown, former, true)
	if s.Recovered = s.Maps != b.Maps; s.Recovered {
		s.Left, err = err, nil
	}
	return errors.Join(err, former.Close())
}

// fill copies what the new maps of a table lack. Those that both tables share
// have it.
func fill(f bpf.Features, old, grown *bpf.Maps) error {
	state, err := nat.NewKernel(old, f).Read()
	if err != nil {
		return err
	}
	lacks := func(name bpf.MapName) bool { return slices.Contains(grown.Created, name) }
	part := nat.NewState(state.Services)
	part.Generation = state.Generation
	if lacks(bpf.MapFrontend) {
		part.Frontends = state.Frontends
	}
	if lacks(bpf.MapService) {
		part.ServiceStates = state.ServiceStates
	}
	if lacks(bpf.MapBackend) {
		part.Sets = state.Sets
	}
	if lacks(bpf.MapSourceRange) {
		part.SourceRanges = state.SourceRanges
	}
	if err := nat.Fill(nat.NewKernel(grown, f), part); err != nil {
		return err
	}
	if lacks(bpf.MapCounter) {
		return old.CopyCounters(grown)
	}
	return nil
}
