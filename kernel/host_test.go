package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInspectReadsATree(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "proc/version"), "Linux version 5.10.0-35-amd64 (debian-kernel@lists.debian.org) (gcc-10 (Debian 10.2.1-6) 10.2.1 20210110) #1 SMP Debian 5.10.237-1 (2025-05-19)\n")
	write(t, filepath.Join(root, "etc/os-release"), "ID=debian\nVERSION_ID=\"11\"\nPRETTY_NAME=\"Debian GNU/Linux 11 (bullseye)\"\n")
	write(t, filepath.Join(root, "sys/kernel/security/lockdown"), "none [integrity] confidentiality\n")
	h := inspect(root, "5.10.0-35-amd64", "#1 SMP Debian 5.10.237-1 (2025-05-19)", "x86_64", nil)
	if h.Release.Version != (Version{5, 10, 0}) || h.Mainline != (Version{5, 10, 237}) || h.Version() != h.Mainline || h.Vendor != "debian" {
		t.Errorf("the kernel was read as %+v", h)
	}
	if h.Distribution.VersionID != "11" || h.Lockdown != "integrity" || h.PageSize != os.Getpagesize() {
		t.Errorf("the host was read as %+v", h)
	}
	if len(h.Problems) != 0 {
		t.Errorf("problems with a good tree: %q", h.Problems)
	}
	if s := h.String(); !strings.Contains(s, "5.10.0-35-amd64 (mainline 5.10.237), Debian GNU/Linux 11 (bullseye), x86_64") {
		t.Errorf("the host in words: %s", s)
	}
}

func TestInspectReadsUbuntusSignature(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "proc/version"), "Linux version 5.4.0-42-generic (buildd@lgw01-amd64-038) (gcc version 9.3.0 (Ubuntu 9.3.0-10ubuntu2)) #46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020\n")
	write(t, filepath.Join(root, "proc/version_signature"), "Ubuntu 5.4.0-42.46-generic 5.4.44\n")
	write(t, filepath.Join(root, "etc/os-release"), "ID=ubuntu\nID_LIKE=debian\n")
	h := inspect(root, "5.4.0-42-generic", "#46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020", "x86_64", nil)
	if h.Mainline != (Version{5, 4, 44}) || h.Vendor != "ubuntu" || len(h.Problems) != 0 {
		t.Errorf("read as %+v", h)
	}
}

func TestInspectReportsWhatItCannotRead(t *testing.T) {
	for sentence, test := range map[string]struct {
		spoil func(root string)
		says  string
	}{
		"no os-release":       {func(root string) { os.Remove(filepath.Join(root, "etc/os-release")) }, "os-release"},
		"a broken os-release": {func(root string) { write(t, filepath.Join(root, "etc/os-release"), "ID=\"x\n") }, "line 1"},
		"os-release is a directory": {func(root string) {
			os.Remove(filepath.Join(root, "etc/os-release"))
			os.Mkdir(filepath.Join(root, "etc/os-release"), 0o755)
		}, "/etc/os-release is not a regular file"},
		"/proc/version is a directory": {func(root string) {
			os.Remove(filepath.Join(root, "proc/version"))
			os.Mkdir(filepath.Join(root, "proc/version"), 0o755)
		}, "/proc/version"},
		"/proc/version is of another one": {func(root string) { write(t, filepath.Join(root, "proc/version"), "Linux version 5.4.0 (x)\n") }, "another machine"},
		"/proc/version is no such line":   {func(root string) { write(t, filepath.Join(root, "proc/version"), "Darwin\n") }, "Darwin"},
		"a lockdown file without choice":  {func(root string) { write(t, filepath.Join(root, "sys/kernel/security/lockdown"), "none\n") }, "lockdown"},
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, "proc/version"), "Linux version 5.3.0 (x)\n")
		write(t, filepath.Join(root, "etc/os-release"), "ID=x\n")
		if h := inspect(root, "5.3.0", "#1", "x86_64", nil); len(h.Problems) != 0 {
			t.Fatalf("problems with a good tree: %q", h.Problems)
		}
		test.spoil(root)
		h := inspect(root, "5.3.0", "#1", "x86_64", nil)
		if !strings.Contains(strings.Join(h.Problems, "\n"), test.says) {
			t.Errorf("%s: the problems are %q, want %q in them", sentence, h.Problems, test.says)
		}
		if h.Release.Version != mainlineFloor {
			t.Errorf("%s: the release was lost", sentence)
		}
	}
}

func TestReadProcFallsBackToThisKernel(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "etc/os-release"), "ID=x\n")
	h := Inspect(root)
	if h.ProcVersion == "" || len(h.Problems) != 0 {
		t.Errorf("a root without /proc: %+v", h)
	}
	if err := fileSystem("bpf")(Config{Root: root}); err != nil {
		t.Errorf("file systems below a root without /proc: %v", err)
	}
}
