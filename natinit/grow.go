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
	created := slices.Clone(grown.Created)
	if err := fill(b.Features, old, grown); err != nil {
		return old, errors.Join(fmt.Errorf("fill the larger table: %w", err), grown.Close())
	}
	if err := grown.Stage(cfg.Pins); err != nil {
		return old, errors.Join(attach.ExplainRights(err), grown.Close())
	}
	b.Maps = grown
	cfg.Programs = b
	a, err := attach.Attach(cfg)
	if err != nil {
		return old, errors.Join(err, grown.Unstage(cfg.Pins), grown.Close())
	}
	defer a.Close()
	if err := grown.Install(cfg.Pins, old); err != nil {
		back := a.Rollback()
		err = errors.Join(err, back, grown.Unstage(cfg.Pins))
		if back != nil && attach.InUse(cfg, grown.Map(created[0])) {
			return grown, err
		}
		return old, errors.Join(err, grown.Close())
	}
	return grown, a.Commit()
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
