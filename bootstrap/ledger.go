package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
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
	data, err := instance.ReadFile(l.path)
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
	missing := instance.Missing(dir)
	if l.outer != nil {
		for _, d := range missing {
			if err := l.outer.Record(kindMkdir, d, ""); err != nil {
				return err
			}
		}
	}
	if err := instance.Make(missing, 0o700); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	for _, d := range missing {
		l.add(kindMkdir, d, "")
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
	if err := instance.WriteFile(l.path, append(data, '\n'), instance.Writing{Durable: l.durable}); err != nil {
		return fmt.Errorf("note a change: %w", err)
	}
	return nil
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
