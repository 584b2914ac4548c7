package diagnose

import (
	"errors"
	"fmt"
	"os"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// node is an instance, and the mounts that it needs, as all commands here look at
// them. What can't be read is for those to judge that need it.
type node struct {
	mounts.Places
	last     *bootstrap.Report // of init; nil: none is there
	lastErr  error
	mount    mounts.BPFFS
	cgroup   mounts.Cgroup2
	maps     *bpf.Maps // nil: there is no table that can be read
	state    *nat.State
	mapsErr  error // why there is none
	hooks    []attach.State
	hooksErr error
}

// lookAt reads what there is of an instance. Close it.
func lookAt(d mounts.Dirs) (*node, error) {
	n := &node{Places: d.Places()}
	if n.last, n.lastErr = bootstrap.LoadReport(n.RunDir); errors.Is(n.lastErr, os.ErrNotExist) {
		n.lastErr = nil
	}
	var err error
	if n.mount, err = mounts.FindBPFFS(d.ForBPFFS()); err != nil {
		return nil, err
	}
	if n.cgroup, err = mounts.FindCgroup2(d.ForCgroup()); err != nil {
		return nil, err
	}
	if n.mapsErr = n.mount.Err(); n.mapsErr == nil {
		n.maps, n.mapsErr = openTable(n.mount)
	}
	if n.maps != nil {
		if n.state, n.mapsErr = readState(n.maps); n.mapsErr != nil {
			n.maps.Close()
			n.maps = nil
		}
	}
	if n.hooksErr = n.cgroup.Err(); n.hooksErr == nil {
		n.hooks, n.hooksErr = attach.Inspect(n.pins(), n.maps, n.cgroup.Path)
	}
	return n, nil
}

func (n *node) close() {
	if n.maps != nil {
		n.maps.Close()
	}
}

// tableErr says why there is no table; it matches ErrNoTable where there can be none.
func (n *node) tableErr() error {
	if err := n.mount.Err(); err != nil {
		return fmt.Errorf("%w: %s", ErrNoTable, err)
	}
	return n.mapsErr
}

// pins are where the instance's pins are; below no directory if its bpffs can't be used.
func (n *node) pins() bpf.Pins { return bpf.PinsBelow(n.mount.Path) }

// attached counts the hooks at which a program of the instance is.
func (n node) attached() int {
	attached := 0
	for _, h := range n.hooks {
		if h.Attached {
			attached++
		}
	}
	return attached
}

// others are the programs of others at the instance's hooks, each with its hook.
func (n *node) others() (list []string) {
	for _, h := range n.hooks {
		for _, program := range h.Foreign {
			list = append(list, h.Hook+": program "+program)
		}
	}
	return list
}

// neverProven reports whether a run that was killed left programs that it had not proven.
func (n *node) neverProven() bool {
	l, err := instance.OpenJournal(n.RunDir, false)
	return err == nil && l.Has(instance.KindPending, n.pins().Dir)
}
