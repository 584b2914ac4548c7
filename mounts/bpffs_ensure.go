package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	// pollEvery and settleFor bound the waits for another process that mounts
	// at the same moment.
	pollEvery = 2 * time.Millisecond
	settleFor = 300 * time.Millisecond

	bpffsFlags  = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME
	cgroupFlags = bpffsFlags
)

// EnsureBPFFS mounts the BPF file system (nosuid,nodev,noexec,mode=0700) where
// FindBPFFS finds it absent, and leaves everything else as it is: a mount that
// we did not make is not changed, and none is ever put over another.
//
// The result says what there is now; Actions says what was done, and is empty
// the second time. The error wraps one of the sentinel errors.
//
// It may run at the same time in several processes: a lock on the directory
// below the mount keeps those of firsthop apart, and if a foreign one mounts in
// between, ours is taken off again.
func EnsureBPFFS(ctx context.Context, c Config) (BPFFS, error) {
	b, h, err := findBPFFS(c)
	if err != nil {
		return b, err
	}
	if b.State != BPFFSAbsent {
		return b, b.Err()
	}
	plan := b.Actions
	if len(plan) > 1 { // only for a given path, which is in our own namespace
		if err := c.mkdirAll(h.view(), b.HostPath, 0o700); err != nil {
			return b, fmt.Errorf("make the bpffs directory: %w", err)
		}
		if b.HostPath, err = h.view().resolve(b.HostPath); err != nil {
			return b, fmt.Errorf("look at the bpffs directory: %w", err)
		}
	}
	source := newSource()
	if err := c.record(instance.KindMount, b.HostPath, source); err != nil {
		return b, err
	}
	mounted, err := mountBPFFS(ctx, &h, c, b.HostPath, source)
	if err != nil {
		return b, err
	}
	after, _, err := findBPFFS(c)
	if err != nil {
		return after, err
	}
	after.Actions = nil
	if mounted {
		after.Actions = plan
	}
	return after, after.Err()
}

// newSource names a mount of ours. The random part tells two processes apart
// that mount at the same moment.
func newSource() string { return fmt.Sprintf("%s%08x", sourcePrefix, rand.Uint32()) }

// mountBPFFS mounts in the namespace of h, or where that is refused in our own
// if what is mounted there appears in h's.
func mountBPFFS(ctx context.Context, h *Host, c Config, path, source string) (mounted bool, err error) {
	err = h.inHost(false, func(v view) error {
		mounted, err = mountHere(ctx, v, c, path, source)
		return err
	})
	if err == nil || h.own || !errors.Is(err, ErrRefused) {
		return mounted, err
	}
	refusal := err
	own := ownView()
	there, lookErr := lookAt(own, Config{Path: path})
	if lookErr != nil || there.State != BPFFSAbsent || !there.Mount.Shared {
		return false, fmt.Errorf("mount bpffs at %s on the host: %w; and a mount at %s here would not propagate to the host. Mount it on the host: mount -t bpf -o nosuid,nodev,noexec,mode=0700 bpf %s",
			path, refusal, path, path)
	}
	if _, err := mountHere(ctx, own, c, path, source); err != nil {
		return false, errors.Join(refusal, err)
	}
	// Unlike a pod without any way to the host we can see whether it arrived.
	if after, err := lookAt(h.view(), Config{Path: path}); err != nil || after.State == BPFFSAbsent {
		_ = unix.Unmount(path, 0)
		return false, fmt.Errorf("mount bpffs at %s on the host: %w; and a mount at %s here did not propagate to the host", path, refusal, path)
	}
	return true, nil
}

// mountHere mounts in the namespace of the calling thread. It reports false if
// another process was faster.
func mountHere(ctx context.Context, v view, c Config, path, source string) (bool, error) {
	dir := v.open(path)
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	look := Config{Path: path, Explicit: c.Explicit}
	if b, err := lookAt(v, look); err != nil {
		return false, err
	} else if b.State != BPFFSAbsent {
		return false, nil
	}
	record := func(identity string) error { return c.record(instance.KindMount, path, identity) }
	identity, err := mountRecorded(dir, source, record)
	if err != nil {
		return false, err
	}
	if identity == "" {
		if err := unix.Mount(source, dir, "bpf", bpffsFlags, "mode=0700"); err != nil {
			return false, explainMount("bpf", dir, err)
		}
		if identity, err = identify(v, path, source); err != nil {
			return true, err
		}
		if identity != source {
			if err := record(identity); err != nil {
				return true, err
			}
		}
	}
	return settle(ctx, v, path, identity)
}

// identify gives that by which the mount just made can be found again: the
// source that it was given, or the device of what is there now where the kernel
// dropped the source.
func identify(v view, path, source string) (string, error) {
	point := v.inTable + path
	table, err := v.mounts(mountPointIs(point))
	if err != nil {
		return "", err
	}
	var last *Mount
	for i, m := range table {
		if m.Source == source {
			return source, nil
		}
		if m.Type == "bpf" {
			last = &table[i]
		}
	}
	if last == nil {
		return source, nil // taken off by another already: settle says so
	}
	return devicePrefix + last.Dev, nil
}

func explainMount(fstype, dir string, err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount %s at %s: %w: the kernel is built without it", fstype, dir, err)
	}
	return privileges.Refused("mount "+fstype+" at", dir, err, unix.CAP_SYS_ADMIN)
}

// lockDir takes the lock on a directory below a future mount point. Who waited
// must look again, for the directory may be covered by then.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	l, err := instance.LockDir(ctx, dir)
	if errors.Is(err, instance.ErrLocked) {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("lock the mount point: %w", err)
	}
	return func() { _ = l.Release() }, nil
}

// settle ensures that a mount of ours just made is the only bpffs at its
// place. A process that finds its mount over another removes its own: so of two
// that do this the lower one stays, and it waits until the upper one has gone.
// If the upper one stays (mount -a does not look), ours is hidden, which the
// next look reports.
//
// Between the look and the unmount a third may mount over ours, and we would
// remove that. Unmounting by file descriptor does not help: the kernel goes
// from there up to the topmost (LOOKUP_MOUNTPOINT).
func settle(ctx context.Context, v view, path, identity string) (bool, error) {
	for until := time.Now().Add(settleFor); ; {
		stack, table, err := v.stackOf(path)
		if err != nil {
			return true, err
		}
		others := 0
		for _, m := range stack {
			if m.Type == "bpf" && !m.is(identity) {
				others++
			}
		}
		switch {
		case len(stack) == 0 && len(table) > 0 && time.Now().Before(until):
			// What we opened was taken off before we read the table.
		case others == 0:
			return len(stack) > 0, nil
		case stack[0].is(identity):
			// Detach: a process that looks at it would make it busy.
			if err := unix.Unmount(v.open(path), unix.MNT_DETACH); err != nil {
				return true, fmt.Errorf("take our second mount at %s off again: %w", path, err)
			}
			return false, nil
		case time.Now().After(until):
			return true, nil
		}
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case <-time.After(pollEvery):
		}
	}
}

// UnmountBPFFS undoes a mount that EnsureBPFFS made. source is what was last
// recorded for it, the mount's source or its device; "" stands for any mount
// whose source says that it is ours. It refuses with
// ErrNotOurs if the topmost mount is another, and with ErrInUse while it holds
// anything. If there is no bpffs it does nothing. A directory that EnsureBPFFS
// made stays.
func UnmountBPFFS(ctx context.Context, c Config, source string) error {
	b, h, err := findBPFFS(c)
	if err != nil {
		return err
	}
	switch b.State {
	case BPFFSAbsent, BPFFSNoDirectory:
		return nil
	case BPFFSUnreachable:
		return b.Err()
	}
	if h.outOfReach && !b.Mount.Shared {
		return fmt.Errorf("unmount bpffs at %s: %w: it would only go from this container", b.HostPath, ErrNoHost)
	}
	return unmount(ctx, &h, c, b.HostPath, source, "bpf", func(dir string) error {
		names, err := entries(dir, maxEntries)
		if err != nil {
			return fmt.Errorf("look into bpffs before unmounting it: %w", err)
		}
		if len(names) > 0 {
			return fmt.Errorf("unmount bpffs at %s: %w: it holds %s", b.HostPath, ErrInUse, listed(names))
		}
		return nil
	})
}

// unmount takes off the topmost mount at path if it is the one that is meant
// and check agrees.
func unmount(ctx context.Context, h *Host, c Config, path, source, fstype string, check func(dir string) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return h.inHost(false, func(v view) error {
		stack, _, err := v.stackOf(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(stack) == 0 {
			return fmt.Errorf("unmount %s: %w: it is not a mount point", path, ErrNotOurs)
		}
		top := stack[0]
		if mine := top.is(source) || source == "" && top.Ours(); top.Type != fstype || !mine {
			return fmt.Errorf("unmount %s: %w: the topmost mount there is a %s with source %s", path, ErrNotOurs, top.Type, top.Source)
		}
		if err := check(v.open(path)); err != nil {
			return err
		}
		if err := c.record(instance.KindUmount, path, top.Source); err != nil {
			return err
		}
		err = unix.Unmount(v.open(path), 0)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w: a process has a file or its working directory there", path, ErrInUse)
		}
		if err != nil {
			return privileges.Refused("unmount", path, err, unix.CAP_SYS_ADMIN)
		}
		return nil
	})
}
