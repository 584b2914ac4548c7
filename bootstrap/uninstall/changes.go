package uninstall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
	"github.com/firsthop/firsthop/units"
)

// changes are all that an uninstall undoes, in this order: first what would bring
// the rest back, then what traffic uses, at last what only remembers. What is not
// in the journal, is not pinned by us and does not carry our mark is not ours.
var changes = []struct {
	what string
	find func(*uninstaller, context.Context) error // adds to removals
	undo func(*uninstaller, context.Context) error
	api  bool // it is not on this host: it is undone after the rest, without the lock
}{
	{what: "units, and the copy of the program that they start", find: (*uninstaller).findUnits, undo: (*uninstaller).removeUnits},
	{what: "settings of the kernel", find: (*uninstaller).findSettings, undo: (*uninstaller).restoreSettings},
	{what: "programs at hooks, and pins", find: (*uninstaller).findPins, undo: (*uninstaller).detach},
	{what: "mounts", find: (*uninstaller).findMounts, undo: (*uninstaller).unmount},
	{what: "files in the state and run directories", find: (*uninstaller).findFiles, undo: (*uninstaller).removeFiles},
	{what: "directories, the journals and the lock", find: (*uninstaller).findDirs, undo: (*uninstaller).removeOurDirs},
	{what: "label and condition of the Node", find: (*uninstaller).findMarks, undo: (*uninstaller).removeMarks, api: true},
}

// find finds what is to go.
func (u *uninstaller) find(ctx context.Context, api bool) error {
	for _, c := range changes {
		if c.api == api {
			if err := c.find(u, ctx); err != nil {
				return fmt.Errorf("find %s: %w", c.what, err)
			}
		}
	}
	return nil
}

// undo undoes it, once it is sure that all of the kernel's part can be found: the
// units would bring the rest back.
func (u *uninstaller) undo(ctx context.Context, api bool) error {
	if !api {
		if err := u.attachment().Check(); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if c.api == api {
			if err := c.undo(u, ctx); err != nil {
				return fmt.Errorf("remove %s: %w", c.what, err)
			}
		}
	}
	return nil
}

func (u *uninstaller) findUnits(ctx context.Context) error {
	if u.Own() {
		return nil // an instance of its own installs no units
	}
	rep, err := units.PlanUninstall(ctx, u.unitsConfig())
	if err != nil {
		return err
	}
	for _, a := range rep.Actions {
		u.add("unit", string(a.Kind)+" "+a.Path)
	}
	return nil
}

func (u *uninstaller) unitsConfig() units.Config {
	return units.Config{Root: u.HostRoot, StateDir: u.OnHost(u.StateDir), Owned: u.durable.Has, Record: u.durable.Record, Log: u.Log}
}

func (u *uninstaller) removeUnits(ctx context.Context) error {
	if u.Own() {
		return nil
	}
	rep, err := units.Uninstall(ctx, u.unitsConfig())
	if err != nil {
		return err
	}
	for _, w := range rep.Warnings {
		u.Log.Warn(w)
	}
	return nil
}

func (u *uninstaller) settings() sysctl.Settings { return sysctl.Of(u.HostRoot) }

// findSettings finds those that are still as we have set them. They are those of the network namespace that this runs in.
func (u *uninstaller) findSettings(context.Context) error {
	for _, e := range sysctl.Recorded(u.volatile) {
		if now, mine, _ := u.settings().Mine(e); mine {
			u.add("setting", fmt.Sprintf("%s = %d (before: %d)", sysctl.Dotted(e.Name), now, e.Former))
		}
	}
	return nil
}

func (u *uninstaller) restoreSettings(context.Context) error {
	for _, e := range sysctl.Recorded(u.volatile) {
		left, err := u.settings().Restore(e)
		if err != nil { // what is served must not stay for that
			left = err.Error()
		}
		if left != "" {
			u.Log.Warn("a setting of the kernel is left as it is", "setting", sysctl.Dotted(e.Name), "before", e.Former, "reason", left)
			u.keep = append(u.keep, sysctl.Dotted(e.Name))
		}
		if err := u.volatile.Forget(instance.KindSysctl, sysctl.Target(e.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (u *uninstaller) findPins(context.Context) error {
	if u.bpffs.Err() != nil {
		for _, e := range u.volatile.Entries() {
			if e.Kind == instance.KindProgram || e.Kind == instance.KindDevice {
				u.add("program", e.Target)
			}
		}
		return nil
	}
	pins := bpf.PinsBelow(u.bpffs.Path)
	maps, err := bpf.OpenMaps(pins, true)
	if err == nil {
		defer maps.Close()
		u.vips, err = diagnose.ReadMaps(maps)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, bpf.ErrForeign) {
		return err
	}
	if u.cgroup.Err() == nil && maps != nil {
		hooks, err := attach.Inspect(pins, maps, u.cgroup.Path)
		if err != nil {
			return err
		}
		for _, h := range hooks {
			if h.Attached {
				u.add("program", fmt.Sprintf("%s (id %d, by %s) at %s", h.Hook, h.Program, h.By, u.cgroup.HostPath))
			}
		}
	}
	if err := u.findAtDevices(pins); err != nil {
		return err
	}
	pinned, err := natinit.Pinned(pins)
	for _, pin := range pinned {
		u.add("pin", pin)
	}
	return err
}

// findAtDevices finds what of the packet path is at devices of this network namespace.
func (u *uninstaller) findAtDevices(pins bpf.Pins) error {
	devices, err := attach.InspectDevices(attach.Config{Pins: pins, Programs: attach.ByName(bpf.UplinkHooks()), Journal: u.volatile})
	if err != nil {
		return err
	}
	for _, d := range devices {
		for _, h := range d.Hooks {
			u.add("program", fmt.Sprintf("%s (id %d, by %s) at device %s", h.Hook, h.Program, h.By, d.Device))
		}
		if d.Clsact {
			u.add("qdisc", fmt.Sprintf("clsact of device %s, unless filters of others are in it", d.Device))
		}
	}
	return nil
}

func (u *uninstaller) attachment() bootstrap.Attachment {
	links := kernel.Config{Forbid: u.Forbid}.Links()
	return bootstrap.Attachment{BPFFS: u.bpffs, Cgroup: u.cgroup, Journal: u.volatile, Links: links, Log: u.Log}
}

func (u *uninstaller) detach(context.Context) error { return u.attachment().Remove() }

func (u *uninstaller) findMounts(context.Context) error {
	for _, e := range u.volatile.Entries() {
		if e.Kind == instance.KindMount && !(e.Target == u.bpffs.HostPath && u.bpffsIsShared()) {
			u.add("mount", e.Target)
		}
	}
	return nil
}

// bpffsIsShared reports whether others have something in the bpffs, which then
// stays mounted.
func (u *uninstaller) bpffsIsShared() bool {
	if u.bpffs.Err() != nil {
		return false
	}
	entries, _ := os.ReadDir(u.bpffs.Path) // what can't be read is told by the unmount
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		// The kernel's own are maps.debug and progs.debug; others can't have a dot.
		return filepath.Join(u.bpffs.Path, e.Name()) != bpf.PinsBelow(u.bpffs.Path).Dir && !strings.Contains(e.Name(), ".")
	})
}

func (u *uninstaller) unmount(ctx context.Context) error {
	if u.tableLock != nil { // it would make the bpffs busy
		u.tableLock.Release()
	}
	for _, e := range u.volatile.Entries() {
		if e.Kind != instance.KindMount {
			continue
		}
		unmount, c := mounts.UnmountBPFFS, u.ForBPFFS()
		if e.Target != u.bpffs.HostPath {
			unmount, c = mounts.UnmountCgroup2, u.ForCgroup()
		}
		err := unmount(ctx, c, e.Former)
		for range 20 { // somebody may just be looking, such as a status
			if !errors.Is(err, mounts.ErrInUse) {
				break
			}
			time.Sleep(10 * time.Millisecond)
			err = unmount(ctx, c, e.Former)
		}
		switch {
		case errors.Is(err, mounts.ErrNotOurs), errors.Is(err, mounts.ErrAbsent), errors.Is(err, mounts.ErrInUse):
			u.left[e.Target] = true
			u.Log.Warn("mount is left alone, it is not ours any more, or others use it", "mount", e.Target, "error", err)
		case err != nil:
			return err
		}
		if err := u.volatile.Forget(e.Kind, e.Target); err != nil {
			return err
		}
	}
	return nil
}

func (u *uninstaller) findFiles(context.Context) error {
	for _, path := range slices.Concat(u.files(), u.lastFiles()) {
		if isThere(path) {
			u.add("file", path)
		}
	}
	return nil
}

func (u *uninstaller) removeFiles(context.Context) error { return removeFiles(u.files()) }

// files are those of ours in the state and run directories, but for the lists
// of changes and the lock.
func (u *uninstaller) files() []string {
	var damaged []string
	for _, dir := range []string{u.StateDir, u.RunDir} {
		if !u.unreadable[dir] {
			damaged = append(damaged, filepath.Join(dir, instance.JournalName+".damaged"))
		}
	}
	return slices.Concat(bootstrap.Leftovers(u.StateDir), bootstrap.Leftovers(u.RunDir), damaged, apiserver.CacheFiles(u.StateDir), []string{
		filepath.Join(u.RunDir, instance.StatusName),
		filepath.Join(u.RunDir, instance.RuntimeLockName), filepath.Join(u.RunDir, instance.RuntimeSocketName),
	})
}

func (u *uninstaller) findDirs(context.Context) error {
	for _, dir := range u.emptied() {
		u.add("directory", dir)
	}
	return nil
}

// removeOurDirs removes what is needed until the end, and the directories that we made.
func (u *uninstaller) removeOurDirs(context.Context) error {
	if isDir(u.RunDir) { // from here on, the volatile journal has the entries of both
		for _, e := range u.durable.Entries() {
			if e.IsDir() {
				if err := u.volatile.Record(e.Kind, e.Target, ""); err != nil {
					return err
				}
			}
		}
	}
	dirs := u.dirs()
	if err := removeFiles(u.lastFiles()[:2]); err != nil {
		return err
	}
	u.removeDirs(dirs, u.RunDir)
	return u.removeRunDir(dirs)
}

func (u *uninstaller) findMarks(ctx context.Context) error {
	u.withMarks(ctx, query.ReadMarks)
	return nil
}

func (u *uninstaller) removeMarks(ctx context.Context) error {
	u.withMarks(ctx, query.RemoveMarks)
	return nil
}
