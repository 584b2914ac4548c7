package kernel

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/kernel/privileges"
)

// What Config.Forbid does beyond the answers of the probes, so that a newer
// kernel with all of AboveFloor forbidden behaves as the floor does.

// AboveFloor lists the features that a kernel at the floor lacks: those of newer
// releases.
func AboveFloor() []string {
	var names []string
	for _, p := range Probes() {
		if p.Since.Compare(mainlineFloor) > 0 {
			names = append(names, p.Name)
		}
	}
	return names
}

func (c Config) forbids(name string) bool { return slices.Contains(c.Forbid, name) }

// Links says how the machine's links are listed.
func (c Config) Links() objects.Links {
	if c.forbids(FeatureLinkList) {
		return objects.Unlisted()
	}
	return objects.Links{}
}

// IntoCgroup reports whether processes may be started in a cgroup. Where the
// kernel can't, it says so then.
func (c Config) IntoCgroup() bool { return !c.forbids(FeatureIntoCgroup) }

// errBeforeCapBPF is what a kernel without CAP_BPF says to a process without
// CAP_SYS_ADMIN.
var errBeforeCapBPF = fmt.Errorf("CAP_BPF is forbidden by configuration, and CAP_SYS_ADMIN is not there: %w", unix.EPERM)

// privileges are those of a process on a kernel without CAP_BPF, where that is
// forbidden.
func (c Config) privileges(p privileges.Privileges) privileges.Privileges {
	if c.forbids(FeatureCapBPF) {
		return p.WithoutCapBPF()
	}
	return p
}

// refusesBPF reports whether the kernel that is pretended to would refuse to
// load anything.
func (c Config) refusesBPF() bool {
	if !c.forbids(FeatureCapBPF) {
		return false
	}
	p, err := privileges.Read()
	return err == nil && !p.Has(unix.CAP_SYS_ADMIN)
}

// raiseMemlock is RaiseMemlock, also where memory accounting by cgroup is
// forbidden.
func (c Config) raiseMemlock(h Host) Memlock {
	if c.forbids(FeatureMemcg) {
		h.Release.Version = Version{Major: mainlineFloor.Major, Minor: mainlineFloor.Minor}
	}
	return RaiseMemlock(h)
}
