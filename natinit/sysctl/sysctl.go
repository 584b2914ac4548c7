package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
)

// Setting is a number that a file below /proc/sys is to have.
type Setting struct {
	Name  string // the file below /proc/sys: "net/netfilter/nf_conntrack_max"
	Value uint64

	// Default is what the kernel has where nobody set it. Any other value was chosen
	// by somebody, and stays, unless Given or AtLeast.
	Default uint64
	Given   bool // an administrator asked for this very value: whatever is there is replaced
	AtLeast bool // a lower value is raised, an administrator's too; a higher one stays

	// Unit is of what the kernel makes multiples when it is written; 0: it takes the value as it is.
	Unit uint64
}

// Outcome is what came of a Setting.
type Outcome string

// The outcomes.
const (
	Changed  Outcome = "changed"
	UpToDate Outcome = "up to date" // it had the value, or a higher one is fine
	Left     Outcome = "left"       // somebody else set it
	Missing  Outcome = "missing"    // the kernel has no such setting, or not yet
	ReadOnly Outcome = "read-only"  // /proc/sys is mounted read-only here
	Global   Outcome = "global"     // only the machine's first network namespace may change it
)

// Settings are those below the /proc of a host.
type Settings struct{ Proc string }

// Of returns the settings of the host whose files have the prefix root, "" where they
// are ours. The host's own mount of /proc is gone through: a container that sees the
// host's processes in its /proc still has a read-only /proc/sys there (readonlyPaths
// of the OCI runtime specification). Whatever the mount, settings of a network namespace
// are those of the thread that opens them.
func Of(root string) Settings { return Settings{Proc: root + "/proc"} }

func (s Settings) path(name string) string { return s.Proc + "/sys/" + name }

// Target is how a setting is called in the journal: its path on the host.
func Target(name string) string { return "/proc/sys/" + name }

// Dotted is how sysctl(8) calls it. What has a dot of its own is not among ours.
func Dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }

// Read gives the value of a setting.
func (s Settings) Read(name string) (uint64, error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return 0, err
	}
	value, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", Dotted(name), err)
	}
	return value, nil
}

// Apply sets a setting once. It returns what it was before. An error is of the
// journal, or of a value that could not be read: nothing is changed then.
func (s Settings) Apply(j *instance.Journal, want Setting) (outcome Outcome, former uint64, err error) {
	now, err := s.Read(want.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return Missing, 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	value := want.Value
	if want.Unit > 1 {
		value = (value + want.Unit - 1) / want.Unit * want.Unit
	}
	e, noted := find(j, want.Name)
	switch {
	case now == value, want.AtLeast && now > value:
		return UpToDate, now, nil
	case noted && e.isOurs(now):
		e.Ours = append(e.Ours, value)
	case !want.Given && !want.AtLeast && now != want.Default:
		return Left, now, nil
	default:
		e = Entry{Name: want.Name, Former: now, Ours: []uint64{value}}
	}
	if no := s.unwritable(want.Name); no != "" {
		return no, now, nil
	}
	if err := j.Amend(instance.KindSysctl, Target(want.Name), e.encode()); err != nil {
		return "", now, err
	}
	if err := s.write(want.Name, value); err != nil {
		if !noted { // it was not changed
			err = errors.Join(err, j.Forget(instance.KindSysctl, Target(want.Name)))
		}
		return ReadOnly, now, err
	}
	return Changed, now, nil
}

// unwritable says why a setting cannot be written, "" if it can: in other network
// namespaces than the first one, the kernel makes those that are for the whole
// machine read-only by their mode, also for root (nf_conntrack_standalone_init_sysctl).
func (s Settings) unwritable(name string) Outcome {
	st, err := os.Stat(s.path(name))
	if err == nil && st.Mode().Perm()&0o200 == 0 {
		return Global
	}
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	if err != nil {
		return ReadOnly
	}
	f.Close()
	return ""
}

func (s Settings) write(name string, value uint64) error {
	f, err := os.OpenFile(s.path(name), os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0)
	if err == nil {
		_, err = f.WriteString(strconv.FormatUint(value, 10))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", Dotted(name), err)
	}
	return nil
}

// Entry is a setting that was changed, as the journal has it.
type Entry struct {
	Name   string
	Former uint64   // what somebody else, or the kernel, had set
	Ours   []uint64 // what we have set since, the last one last
}

func (e Entry) isOurs(value uint64) bool { return slices.Contains(e.Ours, value) }

// encode is the entry's former state in the journal: "60 -> 3600".
func (e Entry) encode() string {
	var ours []string
	for _, v := range e.Ours {
		if text := strconv.FormatUint(v, 10); !slices.Contains(ours, text) {
			ours = append(ours, text)
		}
	}
	return fmt.Sprintf("%d -> %s", e.Former, strings.Join(ours, " "))
}

func decode(target, text string) (e Entry, ok bool) {
	name, found := strings.CutPrefix(target, "/proc/sys/")
	former, ours, arrow := strings.Cut(text, " -> ")
	if !found || !arrow || path.Clean("/"+name) != "/"+name {
		return e, false
	}
	e.Name = name
	var err error
	if e.Former, err = strconv.ParseUint(former, 10, 64); err != nil {
		return e, false
	}
	for field := range strings.FieldsSeq(ours) {
		v, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return e, false
		}
		e.Ours = append(e.Ours, v)
	}
	return e, true
}

// Recorded are the settings that a journal has as changed, the oldest first.
func Recorded(j *instance.Journal) (out []Entry) {
	for _, e := range j.Entries() {
		if e.Kind != instance.KindSysctl {
			continue
		}
		if d, ok := decode(e.Target, e.Former); ok {
			out = append(out, d)
		}
	}
	return out
}

func find(j *instance.Journal, name string) (Entry, bool) {
	for _, e := range Recorded(j) {
		if e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// Mine reports whether a setting still has a value of ours, and which.
func (s Settings) Mine(e Entry) (now uint64, mine bool, err error) {
	now, err = s.Read(e.Name)
	return now, err == nil && e.isOurs(now), err
}

// Restore puts the former value back where the value is still ours. left says why
// it is not put back, "" where it is: then it is not to be tried again.
func (s Settings) Restore(e Entry) (left string, err error) {
	now, mine, err := s.Mine(e)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the kernel does not have it any more", nil
	case err != nil:
		return "", err
	case !mine:
		return fmt.Sprintf("somebody has set it to %d since", now), nil
	}
	if e.Name == conntrackMax {
		// A lower limit drops new connections at once where there are more already.
		if count, err := s.Read(conntrackCount); err == nil && count >= e.Former {
			return fmt.Sprintf("%d connections are tracked, more than the former %d allows", count, e.Former), nil
		}
	}
	return "", s.write(e.Name, e.Former)
}
