package bootstrap

import (
	"cmp"
	"context"
	"os"

	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/units"
)

// An image that is built (debootstrap, Packer, mkosi, a Containerfile): its root
// is ours, and what runs is not what it will boot.

// intoImage has an install stay in the root that it was called in, where that is
// an image: in a chroot, or in a mount namespace that no container runtime made,
// by which image builders reach the same. Who has a container that installs on
// its node says so by --root.
func (s *stage) intoImage() {
	outside := s.Places.Chroot || s.Root == "" && (s.HostRoot != "" || s.NoHost != nil) && !madeByRuntime()
	if !s.onlyPersist || s.Own() || !outside {
		return
	}
	s.outside = cmp.Or(s.HostRoot, "/proc/1/root")
	s.image = true
	s.Places = mounts.Places{Given: s.Dirs, StateDir: s.Dirs.StateDir, RunDir: s.Dirs.RunDir, Proc: "/proc"}.WithDefaults()
}

// madeByRuntime reports whether a container runtime made this container.
func madeByRuntime() bool {
	if kernel.Inspect("").Privileges.Container != "" {
		return true
	}
	_, err := os.Lstat("/dev/termination-log") // a kubelet gives one to every container
	return err == nil
}

// skipInImage has a step not done that looks at what runs.
func skipInImage(do func(*stage, context.Context) (outcome, error)) func(*stage, context.Context) (outcome, error) {
	return func(s *stage, ctx context.Context) (outcome, error) {
		if s.image {
			return outcome{result: Skipped, reason: "an image is prepared: which kernel and which node it boots on is not known"}, nil
		}
		return do(s, ctx)
	}
}

// offline reports whether the boot unit goes into files of what is not running:
// an image, or the layer of a container image that will be booted.
func (s *stage) offline() bool {
	return s.image || s.onlyPersist && units.DetectInit(s.HostRoot).Kind == units.NoInit && units.DetectInstalled(s.HostRoot).Kind != units.NoInit
}
