package instance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// JournalName is the file that lists what was changed on the host. One in the
// run directory lists what a reboot undoes (mounts, programs), one in the state
// directory what it does not undo (files, units).
const JournalName = "changes.json"

// BackupName is a copy of the journal beside it, for a journal that was damaged
// (a full disk, a bad sector). Its name is that of a temporary file, which every
// version removes.
const BackupName = "." + JournalName + ".bak"

// Kind says what kind of change an entry of the journal is.
type Kind string

// The kinds. A former or a later version may have others: they are kept.
const (
	KindMkdir   Kind = "mkdir"          // a directory was created
	KindDir     Kind = "dir"            // likewise, the state directory by natinit/apiserver
	KindFile    Kind = "file"           // a file of ours was created
	KindMount   Kind = "mount"          // Former is the mount's source
	KindUmount  Kind = "umount"         // a mount of ours was undone
	KindWrite   Kind = "write"          // a file was written (package units)
	KindLink    Kind = "link"           // a symbolic link was created
	KindRemove  Kind = "remove"         // a file was removed
	KindRmdir   Kind = "rmdir"          // a directory was removed
	KindEnable  Kind = "enable"         // a unit was enabled
	KindDisable Kind = "disable"        // a unit was disabled
	KindReload  Kind = "reload"         // the service manager was reloaded
	KindStop    Kind = "stop"           // a unit was stopped
	KindProgram Kind = "program"        // a program was attached: hook, id and tag
	KindDevice  Kind = "device-program" // a program was attached to a device: hook and index, id and tag; Former is the way and the place
	KindQdisc   Kind = "qdisc"          // a clsact qdisc was made: the device's index; Former is which device it is
	KindSysctl  Kind = "sysctl"         // a setting of the kernel was changed: its former value, and ours
	KindPending Kind = "unproven"       // what is attached was not proven yet
)

// Entry is one change, recorded before it is made.
type Entry struct {
	Kind   Kind      `json:"kind"`
	Target string    `json:"target"`           // path on the host, or name of a unit
	Former string    `json:"former,omitempty"` // what was there before, or what identifies the change
	Time   time.Time `json:"time"`
}

// IsDir reports whether a change is the creation of a directory.
func (e Entry) IsDir() bool { return e.Kind == KindMkdir || e.Kind == KindDir }

// Journal records changes in a file, each before it is made. Not safe for
// concurrent use: its users hold the instance's lock.
type Journal struct {
	path    string
	durable bool     // an entry is on disk before the change is made
	outer   *Journal // records the creation of this one's directory, which has no place for it yet; may be nil
	entries []Entry
}

// ErrDamagedJournal says that a journal cannot be understood as a whole.
var ErrDamagedJournal = errors.New("damaged")

// OpenJournal reads the journal in a directory; a missing one is empty. durable
// is for changes that survive a loss of power, as their entries then must.
//
// Of a damaged one it returns what can be recovered, with an error that matches
// ErrDamagedJournal: RecoverJournal makes a new file of it.
func OpenJournal(dir string, durable bool) (*Journal, error) {
	j := NewJournal(dir, durable)
	data, err := ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if errors.Is(err, ErrNotRegular) {
		j.entries = recoverEntries(nil, dir)
		return j, fmt.Errorf("the journal is %w: %w", ErrDamagedJournal, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	if j.entries, err = decodeEntries(data); err != nil {
		j.entries = recoverEntries(data, dir)
		return j, fmt.Errorf("the journal %s is %w: %s", j.path, ErrDamagedJournal, err)
	}
	return j, nil
}

// NewJournal is an empty journal in a directory, whatever is there.
func NewJournal(dir string, durable bool) *Journal {
	return &Journal{path: filepath.Join(dir, JournalName), durable: durable}
}

// SetOuter has the creation of this journal's directory recorded in another one.
func (j *Journal) SetOuter(outer *Journal) { j.outer = outer }

// decodeEntries reads a whole journal.
func decodeEntries(data []byte) ([]Entry, error) {
	var entries []Entry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, err
	}
	for i, e := range entries {
		if e.Kind == "" || e.Target == "" {
			return nil, fmt.Errorf("entry %d has no kind or no target", i)
		}
	}
	return entries, nil
}

// recoverEntries reads what can be read: the backup, and those entries of the
// damaged file that are whole.
func recoverEntries(data []byte, dir string) []Entry {
	out := []Entry{}
	if backup, err := ReadFile(filepath.Join(dir, BackupName)); err == nil {
		out = wholeEntries(backup)
	}
	for _, e := range wholeEntries(data) {
		if !slices.ContainsFunc(out, func(o Entry) bool { return o.Kind == e.Kind && o.Target == e.Target }) {
			out = append(out, e)
		}
	}
	return out
}

// wholeEntries are the entries in a text that can be understood, one by one.
func wholeEntries(data []byte) []Entry {
	if entries, err := decodeEntries(data); err == nil {
		return entries
	}
	var out []Entry
	for {
		begin := bytes.IndexByte(data, '{')
		if begin < 0 {
			return out
		}
		data = data[begin:]
		decoder := json.NewDecoder(bytes.NewReader(data))
		var e Entry
		if decoder.Decode(&e) != nil || e.Kind == "" || e.Target == "" {
			data = data[1:]
			continue
		}
		out = append(out, e)
		data = data[decoder.InputOffset():]
	}
}

// RecoverJournal opens a journal for writing. A damaged one is moved away, and what could be recovered of it is written in
// its place. One that others than root may have written decides nothing: it counts as empty. warning says so.
func RecoverJournal(dir string, durable bool) (j *Journal, warning string, err error) {
	j, err = OpenJournal(dir, durable)
	if errors.Is(err, ErrUntrusted) {
		return NewJournal(dir, durable), fmt.Sprintf("%s: what it lists is not undone by uninstall", err), nil
	}
	if !errors.Is(err, ErrDamagedJournal) {
		return j, "", err
	}
	d, openErr := Open(dir)
	if openErr == nil {
		defer d.Close()
		openErr = d.Rename(JournalName, JournalName+".damaged")
	}
	if openErr != nil {
		return j, "", fmt.Errorf("%w; set it aside: %w", err, openErr)
	}
	warning = fmt.Sprintf("%s; it was set aside as %s, and %d entries of it were recovered: uninstall undoes those", err, j.path+".damaged", len(j.entries))
	return j, warning, j.save()
}

// Entries are the recorded changes, the oldest first.
func (j *Journal) Entries() []Entry { return slices.Clone(j.entries) }

// Has reports whether a change is recorded.
func (j *Journal) Has(kind Kind, target string) bool { return j.find(kind, target) >= 0 }

func (j *Journal) find(kind Kind, target string) int {
	return slices.IndexFunc(j.entries, func(e Entry) bool { return e.Kind == kind && e.Target == target })
}

// HasKind reports whether a change of a kind is recorded.
func (j *Journal) HasKind(kind Kind) bool {
	return slices.ContainsFunc(j.entries, func(e Entry) bool { return e.Kind == kind })
}

// Record records a change before it is made. A change that is
// recorded already keeps its first entry: that one has the true former state.
func (j *Journal) Record(kind Kind, target, former string) error {
	if i := j.find(kind, target); i >= 0 {
		if kind != KindMount || j.entries[i].Former == former {
			return nil
		}
		j.entries = slices.Delete(j.entries, i, i+1) // a mount is identified by its newest source
	}
	return j.append(kind, former, target)
}

// Amend records a change before it is made, and replaces what is recorded of it:
// for one whose former state includes what was done since.
func (j *Journal) Amend(kind Kind, target, former string) error {
	if i := j.find(kind, target); i >= 0 {
		if j.entries[i].Former == former {
			return nil
		}
		j.entries[i].Former = former
		return j.save()
	}
	return j.append(kind, former, target)
}

// Former is what is recorded of a change as its former state.
func (j *Journal) Former(kind Kind, target string) (former string, ok bool) {
	i := j.find(kind, target)
	if i < 0 {
		return "", false
	}
	return j.entries[i].Former, true
}

// RecordAll records several changes of a kind, with one former state, in one write.
func (j *Journal) RecordAll(kind Kind, targets []string, former string) error {
	return j.append(kind, former, slices.DeleteFunc(slices.Clone(targets), func(t string) bool { return j.Has(kind, t) })...)
}

func (j *Journal) append(kind Kind, former string, targets ...string) error {
	if err := j.ensureDir(); err != nil {
		return err
	}
	for _, target := range targets {
		j.add(kind, target, former)
	}
	return j.save()
}

func (j *Journal) add(kind Kind, target, former string) {
	j.entries = append(j.entries, Entry{Kind: kind, Target: target, Former: former, Time: time.Now().UTC().Truncate(time.Second)})
}

// ensureDir creates the journal's own directory, as the first change that it
// records.
func (j *Journal) ensureDir() error {
	dir := filepath.Dir(j.path)
	missing := Missing(dir)
	if j.outer != nil {
		for _, d := range missing {
			if err := j.outer.Record(KindMkdir, d, ""); err != nil {
				return err
			}
		}
	}
	if err := Make(missing, 0o700); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	for _, d := range missing {
		j.add(KindMkdir, d, "")
	}
	return nil
}

// Forget removes the entry of a change that was undone.
func (j *Journal) Forget(kind Kind, target string) error {
	return j.forget(func(e Entry) bool { return e.Kind == kind && e.Target == target })
}

// ForgetIf removes the entries of a kind for which gone reports true.
func (j *Journal) ForgetIf(kind Kind, gone func(target string) bool) error {
	return j.forget(func(e Entry) bool { return e.Kind == kind && gone(e.Target) })
}

func (j *Journal) forget(is func(Entry) bool) error {
	n := len(j.entries)
	j.entries = slices.DeleteFunc(j.entries, is)
	if len(j.entries) == n {
		return nil
	}
	return j.save()
}

// save writes the journal and then its backup: whatever interrupts it, one of
// both is whole.
func (j *Journal) save() error {
	backup := filepath.Join(filepath.Dir(j.path), BackupName)
	if len(j.entries) == 0 {
		for _, path := range []string{backup, j.path} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove the journal: %w", err)
			}
		}
		return nil
	}
	data, err := json.MarshalIndent(j.entries, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the journal: %w", err)
	}
	data = append(data, '\n')
	for _, path := range []string{j.path, backup} {
		if err := WriteFile(path, data, Writing{Durable: j.durable, Temp: tempPrefix(JournalName)}); err != nil {
			return fmt.Errorf("record a change: %w", err)
		}
	}
	return nil
}
