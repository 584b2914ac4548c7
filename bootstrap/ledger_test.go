package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustOpen(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, err := OpenLedger(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustRecord(t *testing.T, l *Ledger, kind, target, former string) {
	t.Helper()
	if err := l.Record(kind, target, former); err != nil {
		t.Fatal(err)
	}
}

// notes are a ledger's entries without their times.
func notes(l *Ledger) (out []string) {
	for _, e := range l.Entries() {
		out = append(out, strings.Join([]string{e.Kind, e.Target, e.Former}, " "))
	}
	return out
}

func TestLedgerKeepsTheFirstNote(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	mustRecord(t, l, "file", "/etc/fstab", "before")
	mustRecord(t, l, "file", "/etc/fstab", "what we wrote")
	mustRecord(t, l, "mkdir", "/etc/fstab", "")
	mustRecord(t, l, "mount", "/sys/fs/bpf", "firsthop-1")
	mustRecord(t, l, "mount", "/sys/fs/bpf", "firsthop-2")
	want := []string{"file /etc/fstab before", "mkdir /etc/fstab ", "mount /sys/fs/bpf firsthop-2"}
	for _, l := range []*Ledger{l, mustOpen(t, dir)} {
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

// TestLedgerIsOnDiskFirst: whoever dies right after Record has left the note.
func TestLedgerIsOnDiskFirst(t *testing.T) {
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
		t.Errorf("an empty list leaves %v", entries)
	}
}

func TestLedgerNotesItsOwnDirectory(t *testing.T) {
	root := t.TempDir()
	outer := mustOpen(t, filepath.Join(root, "run"))
	if err := os.Mkdir(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "var/lib/firsthop")
	l := mustOpen(t, dir)
	l.outer = outer
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

// TestADamagedLedgerIsNotForgotten: what it noted would never be undone.
func TestADamagedLedgerIsNotForgotten(t *testing.T) {
	for name, text := range map[string]string{"cut off": `[{"kind":"mount"`, "empty": "", "of another shape": `{"kind":"mount"}`, "binary": "\x00\x01"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, LedgerName)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenLedger(dir, true); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("got %v", err)
			}
			if data, err := os.ReadFile(path); err != nil || string(data) != text {
				t.Errorf("it is %q now, %v", data, err)
			}
		})
	}
}

func TestTidyKnowsLeftOversByName(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".changes.json.123", ".status.json.9", ".apiserver.json.77", ".changes.json", "changes.json", "x.changes.json.1", ".other.json.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tidy(dir, filepath.Join(dir, "gone"))
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{".changes.json", ".other.json.1", "changes.json", "x.changes.json.1"}, left); diff != "" {
		t.Errorf("(- wanted, + left):\n%s", diff)
	}
}
