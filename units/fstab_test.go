package units

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFstabTarget(t *testing.T) {
	for line, want := range map[string]string{
		"bpffs /sys/fs/bpf bpf rw 0 0":          "/sys/fs/bpf",
		fstabEntry:                              "/sys/fs/bpf",
		"none\t/sys/fs/bpf/ bpf defaults":       "/sys/fs/bpf",
		`x /with\040blank\134 ext4 rw`:          `/with blank\`,
		"# bpffs /sys/fs/bpf bpf rw 0 0":        "",
		"#bpffs /sys/fs/bpf bpf rw 0 0":         "",
		"":                                      "",
		"bpffs /sys/fs/bpf":                     "",
		"/dev/sda2 none swap sw 0 0":            "none",
		"  LABEL=x  /a/../sys/fs/bpf bpf rw 0 ": "/sys/fs/bpf",
	} {
		if got := fstabTarget(line); got != want {
			t.Errorf("fstabTarget(%q) = %q, want %q", line, got, want)
		}
	}
}

// What reads fstab reads our line as we mean it.
func TestFstabEntryIsReadByLibmount(t *testing.T) {
	if _, err := exec.LookPath("findmnt"); err != nil {
		t.Skip("findmnt is not installed (Debian package util-linux)")
	}
	file := filepath.Join(t.TempDir(), "fstab")
	if err := os.WriteFile(file, addFstab([]byte("# x\n/dev/vda / ext4 rw 0 1")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("findmnt", "--tab-file", file, "-rno", "SOURCE,FSTYPE,OPTIONS,FREQ,PASSNO", DefaultBPFFS).CombinedOutput()
	if want := "bpffs bpf rw,nosuid,nodev,noexec,relatime,mode=0700 0 0\n"; err != nil || string(out) != want {
		t.Errorf("findmnt reads %q, %v, want %q", out, err, want)
	}
}

// Ours goes wherever the administrator has moved it, and nothing else does.
func TestCutFstab(t *testing.T) {
	for row, tt := range map[string]struct{ in, want string }{
		"first":             {fstabEntry + "\na\n", "a\n"},
		"in the middle":     {"a\n" + fstabEntry + "\nb", "a\nb"},
		"edited, so theirs": {"a\n" + fstabEntry + " and mine\n", "a\n" + fstabEntry + " and mine\n"},
		"not there":         {"a\n\n", "a\n\n"},
		"alone":             {fstabEntry, ""},
	} {
		if got := string(cutFstab([]byte(tt.in))); got != tt.want {
			t.Errorf("%s: %q, want %q", row, got, tt.want)
		}
	}
}

func FuzzFstabIsRestored(f *testing.F) {
	f.Add([]byte("# a\n/dev/vda / ext4 rw 0 1\n"))
	f.Add([]byte("x"))
	f.Add([]byte("\n\n"))
	f.Add([]byte("a\r\nb\r"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), fstabEntry) {
			return
		}
		if got := cutFstab(addFstab(data)); !bytes.Equal(got, data) {
			t.Errorf("%q became %q", data, got)
		}
		for line := range strings.Lines(string(data)) {
			fstabTarget(line)
		}
	})
}

func FuzzPresetAndInstallSection(f *testing.F) {
	f.Add([]byte("enable firsthop-*\ndisable *\n[Install]\nWantedBy=a b\n"))
	f.Add([]byte("[Install]\nWantedBy=../x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		presetVerdict(data, ServiceName)
		namespacingIn(data)
		for _, d := range installSection(data) {
			if strings.Contains(d, "/") || d == ".wants" {
				t.Errorf("%q asks for a link in %q", data, d)
			}
		}
	})
}
