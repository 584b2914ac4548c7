package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
)

// EnsureCgroup2 mounts the cgroup v2 hierarchy at RunDir/cgroup of the host
// where FindCgroup2 finds its true root mounted nowhere, from within the cgroup
// namespace of pid 1, and changes nothing otherwise.
//
// The result says what there is now; Actions says what was done, and is empty
// the second time. The error wraps one of the sentinel errors.
func EnsureCgroup2(ctx context.Context, c Config) (Cgroup2, error) {
	g, h, root, err := findCgroup2(c)
	if err != nil {
		return g, err
	}
	if g.State != CgroupNotMounted {
		return g, g.Err()
	}
	if err := ctx.Err(); err != nil {
		return g, context.Cause(ctx)
	}
	plan := g.Actions
	if err := h.inHost(true, func(v view) error { return mountCgroup2(v, c, g.HostPath, g.options, root) }); err != nil {
		return g, fmt.Errorf("mount cgroup2 at %s on the host: %w", g.HostPath, err)
	}
	after, _, _, err := findCgroup2(c)
	if err != nil {
		return after, err
	}
	after.Actions = plan
	return after, after.Err()
}

// mountCgroup2 mounts in the namespaces of the calling thread.
func mountCgroup2(v view, c Config, path, options string, root trueRoot) error {
	dir := v.open(path)
	if err := c.mkdirAll(v, path, 0o755); err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	source := newSource()
	if err := c.record(instance.KindMount, path, source); err != nil {
		return err
	}
	err := unix.Mount(source, dir, "cgroup2", cgroupFlags, options)
	if errors.Is(err, unix.EBUSY) {
		// The kernel refuses the same cgroup twice at the same place: another
		// process was faster.
		err = nil
	}
	if err != nil {
		return explainMount("cgroup2", dir, err)
	}
	id, err := CgroupID(dir)
	if err != nil {
		return err
	}
	if root.known && !root.is(id) {
		_ = unix.Unmount(dir, 0)
		return fmt.Errorf("%w: the mount shows cgroup %d; %s", ErrNotTrueRoot, id, root.how)
	}
	return nil
}

// UnmountCgroup2 undoes a mount that EnsureCgroup2 made. source is the mount's
// source as it was recorded; "" stands for any mount of ours. What is attached to
// the cgroup does not depend on the mount. If the hierarchy is not mounted at
// RunDir/cgroup it does nothing. The directory stays.
func UnmountCgroup2(ctx context.Context, c Config, source string) error {
	h, err := FindHost(c)
	if err != nil {
		return err
	}
	path := c.cgroupDir(h.view())
	if _, err := CgroupID(h.view().open(path)); errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNotCgroup) {
		return nil
	}
	return unmount(ctx, &h, c, path, source, "cgroup2", func(string) error { return nil })
}
