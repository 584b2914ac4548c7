package natinit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

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
// more. A socket is found at each instant. Killed between the two, the next
// Seed copies what is in maps that only programs have.
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
	sockets := grown.Outgrow(old)
	b.Maps = grown
	cfg.Programs = b
	a, err := attach.Attach(cfg)
	if err != nil {
		if sockets { // some of the programs may have been attached
			err = errors.Join(err, grown.CopySockets(old, b.Features))
		}
		return old, errors.Join(err, grown.Unstage(cfg.Pins), grown.Close())
	}
	defer a.Close()
	if err := install(cfg, b, old, sockets); err != nil {
		back := a.Rollback()
		err = errors.Join(err, back, grown.Unstage(cfg.Pins))
		if back != nil && attach.InUse(cfg, grown.Map(created[0])) {
			return grown, err
		}
		if sockets {
			err = errors.Join(err, grown.CopySockets(old, b.Features))
		}
		return old, errors.Join(err, grown.Close())
	}
	err = a.Commit()
	if sockets {
		err = errors.Join(err, settle(cfg, b, old))
	}
	return grown, err
}

// install gives the pins to the larger maps, which have all that the smaller ones had.
func install(cfg attach.Config, b attach.Balancer, old *bpf.Maps, sockets bool) error {
	if sockets {
		if err := old.CopySockets(b.Maps, b.Features); err != nil {
			return fmt.Errorf("fill the larger maps of sockets: %w", err)
		}
	}
	return b.Maps.Install(cfg.Pins, old)
}

// settle exchanges the programs that look into two generations of the maps of sockets for such that look into the last
// one, which has all by then: nothing has written to the former since the programs that knew no other are detached.
func settle(cfg attach.Config, b attach.Balancer, old *bpf.Maps) error {
	// Without links (Linux 5.8) the former programs were attached beside the others until now, and have written.
	copied := old.CopySockets(b.Maps, b.Features)
	b.Maps.Settle()
	absorbed := b.Maps.AbsorbOverflow(b.Features)
	a, err := attach.Attach(cfg)
	if err != nil {
		return errors.Join(copied, absorbed, err)
	}
	return errors.Join(copied, absorbed, a.Commit(), a.Close())
}

// recoverSockets copies what a Grow that was killed has left: sockets in maps that the attached programs have, and that
// are not those of the table.
func recoverSockets(pins bpf.Pins, maps *bpf.Maps, f bpf.Features) error {
	progs, err := attach.PinnedPrograms(pins)
	if err != nil {
		return err
	}
	defer attach.CloseAll(progs)
	left, err := maps.OutgrownBy(progs)
	if err != nil || left == nil {
		return err
	}
	err = left.CopySockets(maps, f)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) { // the smaller map, which has what it has
		err = nil
	}
	return errors.Join(err, left.Close())
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
