package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func mustOpen(t *testing.T, dir string) *Journal {
	t.Helper()
	l, err := OpenJournal(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustRecord(t *testing.T, l *Journal, kind Kind, target, former string) {
	t.Helper()
	if err := l.Record(kind, target, former); err != nil {
		t.Fatal(err)
	}
}

// notes are a ledger's entries without their times.
func notes(l *Journal) (out []string) {
	for _, e := range l.Entries() {
		out = append(out, strings.Join([]string{string(e.Kind), e.Target, e.Former}, " "))
	}
	return out
}

func TestJournalKeepsTheFirstNote(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	mustRecord(t, l, "file", "/etc/fstab", "before")
	mustRecord(t, l, "file", "/etc/fstab", "what we wrote")
	mustRecord(t, l, "mkdir", "/etc/fstab", "")
	mustRecord(t, l, "mount", "/sys/fs/bpf", "firsthop-1")
	mustRecord(t, l, "mount", "/sys/fs/bpf", "firsthop-2")
	want := []string{"file /etc/fstab before", "mkdir /etc/fstab ", "mount /sys/fs/bpf firsthop-2"}
	for _, l := range []*Journal{l, mustOpen(t, dir)} {
		if diff := cmp.Diff(want, notes(l)); diff != "" {
			t.Errorf("(- wanted, + got):\n%s", diff)
		}
	}
	if !l.Has("file", "/etc/fstab") || l.Has("file", "/etc") || l.Has("unit", "/etc/fstab") {
		t.Error("Has is wrong")
	}
	if l.Entries()[0].Time.IsZero() {
		t.Error("a note has no time")
	}
}

// TestJournalIsOnDiskFirst: a process that dies right after Record has left the note.
func TestJournalIsOnDiskFirst(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	for i, target := range []string{"/a", "/b", "/c"} {
		mustRecord(t, l, "file", target, "")
		if got := len(mustOpen(t, dir).Entries()); got != i+1 {
			t.Errorf("%d notes on disk after %d", got, i+1)
		}
	}
	for i, target := range []string{"/b", "/a", "/none", "/c"} {
		if err := l.Forget("file", target); err != nil {
			t.Fatal(err)
		}
		if want := []int{2, 1, 1, 0}[i]; len(mustOpen(t, dir).Entries()) != want {
			t.Errorf("%q on disk, want %d notes", notes(mustOpen(t, dir)), want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("an empty journal leaves %v", entries)
	}
}

func TestJournalNotesItsOwnDirectory(t *testing.T) {
	root := t.TempDir()
	outer := mustOpen(t, filepath.Join(root, "run"))
	if err := os.Mkdir(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "var/lib/firsthop")
	l := mustOpen(t, dir)
	l.SetOuter(outer)
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("opening makes the directory")
	}
	mustRecord(t, l, "file", "/x", "")
	made := []string{"mkdir " + root + "/var ", "mkdir " + root + "/var/lib ", "mkdir " + dir + " "}
	if diff := cmp.Diff(append(made, "file /x "), notes(mustOpen(t, dir))); diff != "" {
		t.Errorf("(- wanted, + got):\n%s", diff)
	}
	if diff := cmp.Diff(made, notes(mustOpen(t, filepath.Join(root, "run")))); diff != "" {
		t.Errorf("in the other list (- wanted, + got):\n%s", diff)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, root + "/var/lib": 0o755, root + "/var": 0o755} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
}

func TestJournalDamagedIsAnError(t *testing.T) {
	for name, text := range map[string]string{
		"cut off": `[{"kind":"mount"`, "empty": "", "of another shape": `{"kind":"mount"}`, "binary": "\x00\x01", "nothing in it": "[null]",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, JournalName)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if j, err := OpenJournal(dir, true); !errors.Is(err, ErrDamagedJournal) || !strings.Contains(err.Error(), path) || j == nil {
				t.Errorf("got %v, %v", j, err)
			}
			if data, err := os.ReadFile(path); err != nil || string(data) != text {
				t.Errorf("it is %q now, %v", data, err)
			}
		})
	}
}

// written is a journal with some entries in a new directory.
func written(t *testing.T) (dir string, want []string) {
	t.Helper()
	dir = t.TempDir()
	j := mustOpen(t, dir)
	mustRecord(t, j, KindMkdir, "/var/lib/firsthop", "")
	mustRecord(t, j, KindWrite, "/etc/fstab", "a {\"kind\": \"mkdir\", \"target\": \"/\"} in what was there\n")
	mustRecord(t, j, KindMount, "/sys/fs/bpf", "firsthop-1")
	mustRecord(t, j, "of-a-later-version", "/x", "")
	return dir, notes(j)
}

// TestRecoverJournalLosesNothing cuts the file off at every length and flips
// every bit: the backup has it all.
func TestRecoverJournalLosesNothing(t *testing.T) {
	dir, want := written(t)
	path := filepath.Join(dir, JournalName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	backup, err := os.ReadFile(filepath.Join(dir, BackupName))
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, damaged []byte, withBackup bool) []string {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, BackupName))
		if withBackup {
			if err := os.WriteFile(filepath.Join(dir, BackupName), backup, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		j, warning, err := RecoverJournal(dir, false)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, strict := decodeEntries(damaged)
		if (warning == "") != (strict == nil) {
			t.Errorf("%s: the warning is %q, for %v", what, warning, strict)
		}
		if again, err := OpenJournal(dir, false); err != nil || !cmp.Equal(notes(again), notes(j), cmpopts.EquateEmpty()) {
			t.Errorf("%s: read again: %q, %v; want %q", what, notes(again), err, notes(j))
		}
		return notes(j)
	}
	for n := range whole {
		cut := whole[:n]
		if got := try(fmt.Sprint(n, " bytes"), cut, true); !cmp.Equal(want, got) && n != len(whole)-1 {
			t.Errorf("%d bytes: %q", n, got)
		}
		got := try(fmt.Sprint(n, " bytes, no backup"), cut, false)
		if complete := strings.Count(string(cut), "\n  }"); len(got) < complete || !cmp.Equal(got, want[:len(got)], cmpopts.EquateEmpty()) {
			t.Errorf("%d bytes without a backup: %q", n, got)
		}
	}
	for bit := 0; bit < 8*len(whole); bit += 11 {
		flipped := slices.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		got := try(fmt.Sprint("bit ", bit), flipped, true)
		if _, err := decodeEntries(flipped); err != nil && !isSubset(want, got) {
			t.Errorf("bit %d: %q", bit, got)
		}
	}
}

func isSubset(want, got []string) bool {
	for _, w := range want {
		if !slices.Contains(got, w) {
			return false
		}
	}
	return true
}

// TestRecoverJournalBelievesOnlyRoot: a journal that others may have written makes uninstall remove nothing, and what is
// no file is set aside.
func TestRecoverJournalBelievesOnlyRoot(t *testing.T) {
	needRoot(t)
	const forged = `[{"kind":"mkdir","target":"/precious","time":"2026-11-28T15:00:00Z"}]`
	for name, arrange := range map[string]func(dir, file string) error{
		"in another's directory": func(dir, _ string) error { return os.Chown(dir, nobody, 0) },
		"in a shared directory":  func(dir, _ string) error { return chmod(dir, 0o777) },
		"another's":              func(_, file string) error { return os.Chown(file, nobody, 0) },
		"shared":                 func(_, file string) error { return chmod(file, 0o666) },
		"a link": func(dir, file string) error {
			return errors.Join(os.Rename(file, dir+"/else"), os.Symlink("else", file))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, JournalName)
			must(t, os.WriteFile(file, []byte(forged), 0o600), arrange(dir, file))
			j, warning, err := RecoverJournal(dir, false)
			if err != nil || len(j.Entries()) > 0 || warning == "" {
				t.Errorf("got %v, %q, %v", j, warning, err)
			}
			must(t, j.Record(KindMkdir, "/ours", ""))
		})
	}
}

// Journals that other versions wrote, as they are on disk: 49eda8a is the oldest that may run beside this one, a41da51 the
// one before the kinds had a type. Kinds that are not known are kept.
func TestJournalReadsThoseOfOtherVersions(t *testing.T) {
	for version, want := range map[string]Entry{
		"49eda8a": {Kind: KindProgram, Target: "connect4 id 41 tag 3b185187f1855c4c", Time: time.Date(2026, 5, 2, 9, 14, 8, 0, time.UTC)},
		"a41da51": {Kind: KindUmount, Target: "/sys/fs/bpf", Former: "firsthop-0b7c55d1e2", Time: time.Date(2026, 11, 20, 17, 2, 52, 0, time.UTC)},
	} {
		t.Run(version, func(t *testing.T) {
			data, err := os.ReadFile("testdata/journal-" + version + ".json")
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, JournalName), data, 0o600); err != nil {
				t.Fatal(err)
			}
			j := mustOpen(t, dir)
			if e := j.Entries()[2]; e != want {
				t.Errorf("got %+v, want %+v", e, want)
			}
			mustRecord(t, j, KindStop, "x.service", "")
			if err := j.Forget(KindStop, "x.service"); err != nil {
				t.Fatal(err)
			}
			if now, err := os.ReadFile(filepath.Join(dir, JournalName)); err != nil || string(now) != string(data) {
				t.Errorf("written again as %s, %v", now, err)
			}
		})
	}
}
