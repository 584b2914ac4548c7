package natinit

import (
	"errors"
	"fmt"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// Grow gives a table more room while it serves: larger maps are filled with the
// same content, then the programs are exchanged for such that use them, the
// way back first, then the pins lead to them. No connection is refused on the
// way, and killed anywhere, the next init or run brings table and programs
// together again: until then, none of both changes. cfg.Maps is the table as it
// is; the caller holds its lock, and closes it after it got the new one.
func Grow(cfg AttachConfig, sizes bpf.Sizes) (*bpf.Maps, error) {
	old := cfg.Maps
	grown, err := old.Grow(sizes)
	if err != nil {
		return nil, explainRights(err)
	}
	if len(grown.Created) == 0 {
		return grown, nil
	}
	state, err := nat.NewKernel(old, cfg.Features).Read()
	if err == nil {
		err = nat.Fill(nat.NewKernel(grown, cfg.Features), state)
	}
	if err == nil {
		err = old.CopyCounters(grown)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("fill the larger table: %w", err), grown.Close())
	}
	cfg.Maps = grown
	a, err := Attach(cfg)
	if err != nil {
		return nil, errors.Join(err, grown.Close())
	}
	defer a.Close()
	if err := grown.Install(cfg.Pins); err != nil {
		// Pins and programs must agree on where the next write goes. Where some
		// pins lead to new maps already, the next run attaches anew.
		return nil, errors.Join(err, a.Rollback(), grown.Close())
	}
	return grown, a.Commit()
}
