package bootstrap

import (
	"errors"
	"log/slog"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// attachment is what of an instance is in the kernel.
type attachment struct {
	bpffs   mounts.BPFFS
	cgroup  mounts.Cgroup2
	journal *instance.Journal
	links   objects.Links // of the machine
	log     *slog.Logger
}

func (a attachment) config() attach.Config {
	cfg := attach.Config{Target: attach.Cgroup{}, Journal: a.journal, Links: a.links}
	if a.cgroup.Err() == nil {
		cfg.Target = attach.Cgroup{Path: a.cgroup.Path, ID: a.cgroup.ID}
	}
	if a.bpffs.Err() == nil {
		cfg.Pins = bpf.PinsBelow(a.bpffs.Path)
	}
	return cfg
}

// check finds out, without any change, whether remove can find everything.
func (a attachment) check() error { return natinit.CheckRemove(a.config()) }

// remove removes everything of an instance from the kernel, and its entries in the journal. Everything is looked for
// before anything is detached.
func (a attachment) remove() error {
	if err := a.check(); err != nil {
		return err
	}
	err := natinit.Remove(a.config())
	if errors.Is(err, attach.ErrStillAttached) {
		a.log.Warn("a program is left behind", "error", err)
		return nil
	}
	return err
}
