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

// Attachment is what of an instance is in the kernel.
type Attachment struct {
	BPFFS   mounts.BPFFS
	Cgroup  mounts.Cgroup2
	Journal *instance.Journal
	Links   objects.Links // of the machine
	Log     *slog.Logger
}

func (a Attachment) config() attach.Config {
	cfg := attach.Config{Target: attach.Cgroup{}, Journal: a.Journal, Links: a.Links}
	if a.Cgroup.Err() == nil {
		cfg.Target = attach.Cgroup{Path: a.Cgroup.Path, ID: a.Cgroup.ID}
	}
	if a.BPFFS.Err() == nil {
		cfg.Pins = bpf.PinsBelow(a.BPFFS.Path)
	}
	return cfg
}

// Check finds out, without any change, whether remove can find everything.
func (a Attachment) Check() error { return natinit.CheckRemove(a.config()) }

// Remove removes everything of an instance from the kernel, and its entries in the journal. Everything is looked for
// before anything is detached.
func (a Attachment) Remove() error {
	if err := a.Check(); err != nil {
		return err
	}
	err := natinit.Remove(a.config())
	if errors.Is(err, attach.ErrStillAttached) {
		a.Log.Warn("a program is left behind", "error", err)
		return nil
	}
	return err
}
