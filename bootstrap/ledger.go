package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// LedgerName is the file that lists what was changed on the host. One in the
// run directory lists what a reboot undoes (mounts), one in the state
// directory what it doesn't (files, units).
const LedgerName = "changes.json"

// Kinds of changes that this package undoes itself.
const (
	kindMkdir = "mkdir"
	kindMount = "mount"
)

// Entry is one change, noted before it is made.
type Entry struct {
	Kind   string    `json:"kind"`             // mkdir, mount, file, unit …
	Target string    `json:"target"`           // path on the host, or name of a unit
	Former string    `json:"former,omitempty"` // what was there before, or what identifies the change
	Time   time.Time `json:"time"`
}

// Ledger notes changes in a file, each before it is made. Not safe for
// concurrent use: its users hold the instance's lock.
type Ledger struct {
	path    string
	durable bool    // a note is on disk before the change is made
	outer   *Ledger // notes the making of this one's directory, which has no place for it yet; may be nil
	entries []Entry
}

// OpenLedger reads the ledger in a directory; a missing one is empty. A
// damaged one is an error: what it noted must not be forgotten. durable is for
// changes that survive a loss of power, as their notes then must.
func OpenLedger(dir string, durable bool) (*Ledger, error) {
	l := &Ledger{path: filepath.Join(dir, LedgerName), durable: durable}
	data, err := readRegular(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of changes: %w", err)
	}
	if err := json.Unmarshal(data, &l.entries); err != nil {
		return nil, fmt.Errorf("read the list of changes: %s is %w (%s): mend it or move it away, and undo by hand what it lists", l.path, ErrDamagedLedger, err)
	}
	return l, nil
}

// ErrDamagedLedger says that a list of changes can't be understood.
var ErrDamagedLedger = errors.New("damaged")

// openLedgerAnyway opens a ledger for a run that must go on without it: a node
// that has no Service address for a damaged file would be worse off. It is set
// aside, and warning says so.
func openLedgerAnyway(dir string, durable bool) (l *Ledger, warning string, err error) {
	l, err = OpenLedger(dir, durable)
	if !errors.Is(err, ErrDamagedLedger) {
		return l, "", err
	}
	path := filepath.Join(dir, LedgerName)
	aside := path + ".damaged"
	if e := os.Rename(path, aside); e != nil {
		return nil, "", errors.Join(err, e)
	}
	l, openErr := OpenLedger(dir, durable)
	return l, fmt.Sprintf("%s; it is set aside as %s, and uninstall won't know what it listed", err, aside), openErr
}

// readRegular reads a file, but waits for no one: not for the writer of a FIFO.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	return io.ReadAll(f)
}

// Entries are the noted changes, the oldest first.
func (l *Ledger) Entries() []Entry { return slices.Clone(l.entries) }

// Has reports whether a change is noted.
func (l *Ledger) Has(kind, target string) bool {
	return slices.ContainsFunc(l.entries, func(e Entry) bool { return e.Kind == kind && e.Target == target })
}

// Record notes a change before it is made. A change that is
// noted already keeps its first note: that one has the true former state.
func (l *Ledger) Record(kind, target, former string) error {
	if i := slices.IndexFunc(l.entries, func(e Entry) bool { return e.Kind == kind && e.Target == target }); i >= 0 {
		if kind != kindMount || l.entries[i].Former == former {
			return nil
		}
		l.entries = slices.Delete(l.entries, i, i+1) // a mount is identified by its newest source
	}
	if err := l.ensureDir(); err != nil {
		return err
	}
	l.add(kind, target, former)
	return l.save()
}

func (l *Ledger) add(kind, target, former string) {
	l.entries = append(l.entries, Entry{Kind: kind, Target: target, Former: former, Time: time.Now().UTC().Truncate(time.Second)})
}

// ensureDir makes the ledger's own directory, as the first change that it
// notes.
func (l *Ledger) ensureDir() error {
	dir := filepath.Dir(l.path)
	missing := missingDirs(dir)
	if l.outer != nil {
		for _, d := range missing {
			if err := l.outer.Record(kindMkdir, d, ""); err != nil {
				return err
			}
		}
	}
	if err := makeDirs(missing, 0o700); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	for _, d := range missing {
		l.add(kindMkdir, d, "")
	}
	return nil
}

// missingDirs are those of a directory and its parents that aren't there, the
// topmost first.
func missingDirs(dir string) []string {
	var out []string
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			slices.Reverse(out)
			return out
		}
		out = append(out, dir)
	}
}

// makeDirs makes directories, the topmost first. The mode is the last one's:
// its parents may come to hold things of others.
func makeDirs(dirs []string, mode os.FileMode) error {
	for i, d := range dirs {
		m := os.FileMode(0o755)
		if i == len(dirs)-1 {
			m = mode
		}
		if err := os.Mkdir(d, m); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// Forget removes the note of a change that was undone.
func (l *Ledger) Forget(kind, target string) error {
	n := len(l.entries)
	l.entries = slices.DeleteFunc(l.entries, func(e Entry) bool { return e.Kind == kind && e.Target == target })
	if len(l.entries) == n {
		return nil
	}
	return l.save()
}

func (l *Ledger) save() error {
	if len(l.entries) == 0 {
		if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the list of changes: %w", err)
		}
		return nil
	}
	data, err := json.MarshalIndent(l.entries, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the list of changes: %w", err)
	}
	if err := writeFile(l.path, append(data, '\n'), l.durable); err != nil {
		return fmt.Errorf("note a change: %w", err)
	}
	return nil
}

// tempPrefix begins the names of the files that are to take a file's place.
func tempPrefix(name string) string { return "." + name + "." }

// writeFile replaces a file atomically. With durable it also survives a loss
// of power right after the return.
func writeFile(path string, data []byte, durable bool) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix(filepath.Base(path))+"*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing to remove
	_, err = tmp.Write(data)
	if err == nil && durable {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil || !durable {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// recordAll notes several changes of a kind in one write.
func (l *Ledger) recordAll(kind string, targets []string) error {
	if err := l.ensureDir(); err != nil {
		return err
	}
	for _, target := range targets {
		if !l.Has(kind, target) {
			l.add(kind, target, "")
		}
	}
	return l.save()
}

// forgetAll removes the notes of all changes of a kind.
func (l *Ledger) forgetAll(kind string) error {
	for _, e := range l.Entries() {
		if e.Kind == kind {
			if err := l.Forget(kind, e.Target); err != nil {
				return err
			}
		}
	}
	return nil
}
