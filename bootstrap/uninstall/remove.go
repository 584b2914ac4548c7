package uninstall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/natinit/instance"
)

// goneSuffix marks a run directory that is on its way out. It takes the list of
// changes and the lock along, so that a kill leaves all of it or nothing.
const goneSuffix = ".uninstalled"

// locked takes the lock, for which it makes the run directory where a reboot
// took it, and looks again: an init may have been at work until now.
func (u *uninstaller) locked(ctx context.Context) error {
	// Below 5.11 the library's own probes need it, by which it tells a detach
	// that isn't supported from one that found nothing.
	kernel.RaiseMemlock(kernel.Inspect(u.HostRoot))
	wait, cancel := context.WithTimeout(ctx, u.LockTimeout)
	defer cancel()
	lock, made, err := instance.MakeAndAcquire(wait, u.RunDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	u.lock = lock
	if err := u.look(ctx); err != nil {
		return err
	}
	if u.bpffs.Err() == nil {
		if u.tableLock, err = instance.LockTable(wait, u.bpffs.Path); err != nil {
			return err
		}
		defer u.tableLock.Release()
		if err := u.look(ctx); err != nil { // an instance with another run directory may have been at work
			return err
		}
	}
	if err := u.refuse(ctx); err != nil {
		return err
	}
	for _, dir := range made {
		if err := u.volatile.Record(instance.KindMkdir, dir, ""); err != nil {
			return err
		}
	}
	if len(made) > 0 { // the lock is there for this run only
		u.removals = slices.DeleteFunc(u.removals, func(r Removal) bool { return r.Target == filepath.Join(u.RunDir, instance.LockName) })
	}
	err = u.undo(ctx, false)
	u.removals = slices.DeleteFunc(u.removals, u.stayed)
	return err
}

// stayed reports whether a thing that was to go is still there, as others use it.
func (u *uninstaller) stayed(r Removal) bool {
	switch r.Kind {
	case "mount":
		return u.left[r.Target]
	case "directory":
		return isDir(r.Target)
	case "setting":
		name, _, _ := strings.Cut(r.Target, " ")
		return slices.Contains(u.keep, name)
	}
	return false
}

// lastFiles are needed until the end.
func (u *uninstaller) lastFiles() []string {
	return []string{
		filepath.Join(u.StateDir, instance.BackupName),
		filepath.Join(u.StateDir, instance.JournalName),
		filepath.Join(u.RunDir, instance.BackupName),
		filepath.Join(u.RunDir, instance.JournalName),
		filepath.Join(u.RunDir, instance.LockName),
	}
}

// dirs are the directories that we made and that are still there, those made last first.
func (u *uninstaller) dirs() []string {
	var out []string
	for _, l := range []*instance.Journal{u.durable, u.volatile} {
		for _, e := range slices.Backward(l.Entries()) {
			dir := u.Local(e.Target)
			if e.IsDir() && !slices.Contains(out, dir) && isDir(dir) {
				out = append(out, dir)
			}
		}
	}
	return out
}

// emptied are those of our directories that hold nothing but what goes.
func (u *uninstaller) emptied() []string {
	goes := map[string]bool{}
	for _, r := range u.removals {
		goes[r.Target] = true
	}
	var out []string
	candidates := u.dirs()
	if u.bpffs.Err() == nil {
		pins := bpf.PinsBelow(u.bpffs.Path)
		candidates = append([]string{pins.Links(), pins.Progs(), pins.Maps(), pins.Dir}, candidates...)
	}
	if gone := u.RunDir + goneSuffix; isDir(gone) {
		out = append(out, gone)
	}
	for _, dir := range candidates {
		entries, err := os.ReadDir(dir)
		stays := slices.ContainsFunc(entries, func(e os.DirEntry) bool { return !goes[filepath.Join(dir, e.Name())] })
		if err == nil && (!stays || goes[dir]) { // a mount that goes shows an empty directory
			out = append(out, dir)
			goes[dir] = true
		}
	}
	return out
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// removeDirs removes those of the directories that hold nothing, but for keep.
func (u *uninstaller) removeDirs(dirs []string, keep string) {
	for _, dir := range dirs {
		if dir == keep {
			continue
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			u.Log.Info("directory stays, it holds something of others", "directory", dir, "error", err)
		}
	}
}

// removeRunDir removes the run directory, if it is ours and holds nothing else,
// or what is ours in it; then those of its parents that are ours.
func (u *uninstaller) removeRunDir(dirs []string) error {
	gone := u.RunDir + goneSuffix
	// One that is there already is of a run that was killed here, or is just
	// about to be done: its parents are ours to remove now.
	for _, dir := range u.parentsIn(gone) {
		if err := u.volatile.Record(instance.KindMkdir, dir, ""); err != nil {
			return err
		}
	}
	if err := removeGone(gone); err != nil {
		return err
	}
	if !slices.Contains(dirs, u.RunDir) || !u.onlyOursIn(u.RunDir) {
		return removeFiles(u.lastFiles())
	}
	if err := os.Rename(u.RunDir, gone); err != nil {
		return fmt.Errorf("remove run directory: %w", err)
	}
	// The lock is gone by now: the next init may be at work already, and only
	// what it doesn't use may be touched.
	parents := u.parentsIn(gone)
	if err := removeGone(gone); err != nil {
		return err
	}
	u.removeDirs(parents, "")
	return nil
}

// parentsIn are those of the run directory's parents that the list of changes
// in a directory has as ours, the deepest first.
func (u *uninstaller) parentsIn(dir string) []string {
	l, err := instance.OpenJournal(dir, false)
	if err != nil {
		return nil // damaged: what it noted is small
	}
	var out []string
	for _, e := range slices.Backward(l.Entries()) {
		if dir := u.Local(e.Target); e.IsDir() && strings.HasPrefix(u.RunDir, dir+"/") {
			out = append(out, dir)
		}
	}
	return out
}

func removeGone(gone string) error {
	if err := removeFiles([]string{filepath.Join(gone, instance.LockName), filepath.Join(gone, instance.BackupName), filepath.Join(gone, instance.JournalName)}); err != nil {
		return err
	}
	if err := os.Remove(gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove run directory: %w", err)
	}
	return nil
}

func (u *uninstaller) onlyOursIn(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return !slices.Contains(u.lastFiles(), filepath.Join(dir, e.Name()))
	})
}

func removeFiles(paths []string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove file: %w", err)
		}
	}
	return nil
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
