package units

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/natinit/instance"
)

// host is a directory that stands for a host's file system.
type host struct {
	t    *testing.T
	root string
}

// newHost writes files, by their path on the host; "dir/" makes a directory,
// and contents that begin with "-> " a symbolic link.
func newHost(t *testing.T, contents map[string]string) host {
	t.Helper()
	h := host{t: t, root: t.TempDir()}
	paths := make([]string, 0, len(contents))
	for p := range contents {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		h.write(p, contents[p])
	}
	return h
}

func (h host) path(p string) string { return filepath.Join(h.root, p) }

func (h host) write(p, data string) {
	h.t.Helper()
	at := h.path(p)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		h.t.Fatal(err)
	}
	var err error
	switch target, link := strings.CutPrefix(data, "-> "); {
	case strings.HasSuffix(p, "/"):
		err = os.MkdirAll(at, 0o755)
	case link:
		_ = os.Remove(at)
		err = os.Symlink(target, at)
	default:
		err = os.WriteFile(at, []byte(data), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h host) read(p string) string {
	h.t.Helper()
	data, err := os.ReadFile(h.path(p))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// snapshot is every path with its kind, mode and contents.
func (h host) snapshot() map[string]string { h.t.Helper(); return h.snapshotOf("/") }

func (h host) snapshotOf(dirs ...string) map[string]string {
	h.t.Helper()
	s := map[string]string{}
	for _, dir := range dirs {
		h.walk(s, dir)
	}
	return s
}

func (h host) walk(s map[string]string, dir string) {
	h.t.Helper()
	err := filepath.WalkDir(h.path(dir), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		state := fi.Mode().String()
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			state += " -> " + target
		case fi.Mode().IsRegular():
			sum, err := hashFile(p)
			if err != nil {
				return err
			}
			state += fmt.Sprintf(" %x", sum[:8])
		}
		s[strings.TrimPrefix(p, h.root)] = state
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h host) same(before map[string]string, what string) {
	h.t.Helper()
	if d := cmp.Diff(before, h.snapshot()); d != "" {
		h.t.Errorf("%s changed the host (-before +after):\n%s", what, d)
	}
}

// onDisk is statfs for a temporary directory that may well be in memory.
func onDisk(at string) (fsState, error) {
	st, err := statfs("", at)
	st.volatile = ""
	return st, err
}

// config is for a host whose systemd is told apart by its files and not asked.
func (h host) config() Config {
	return Config{Root: h.root, sockets: []string{}, BinarySource: self(h.t), statfs: onDisk}
}

// self is the test binary, which is a build of our module.
func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// otherBuild is a binary of ours with other contents.
func otherBuild(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "firsthop")
	src, err := os.Open(self(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.WriteString("a later version"); err != nil {
		t.Fatal(err)
	}
	return p
}

// record is a write-ahead record that can be asked again.
type record struct{ entries []string }

func (r *record) add(kind instance.Kind, target, _ string) error {
	r.entries = append(r.entries, string(kind)+" "+target)
	return nil
}

func (r *record) owned(kind instance.Kind, target string) bool {
	return slices.Contains(r.entries, string(kind)+" "+target)
}

func mustInstall(t *testing.T, c Config) Report {
	t.Helper()
	r, err := Install(context.Background(), c)
	if err != nil {
		t.Fatalf("install: %v\n%+v", err, r)
	}
	return r
}

func mustUninstall(t *testing.T, c Config) Report {
	t.Helper()
	r, err := Uninstall(context.Background(), c)
	if err != nil {
		t.Fatalf("uninstall: %v\n%+v", err, r)
	}
	return r
}

func kinds(r Report) string {
	var s []string
	for _, a := range r.Actions {
		s = append(s, string(a.Kind)+" "+a.Path)
	}
	return strings.Join(s, "\n")
}

func TestDirFollowsLinksAsTheHostWould(t *testing.T) {
	h := newHost(t, map[string]string{
		"/var/opt/":     "",
		"/opt":          "-> /var/opt",
		"/etc/":         "",
		"/lib":          "-> usr/lib",
		"/usr/lib/a/":   "",
		"/up/down":      "-> ../../../../etc",
		"/etc/deep":     "-> /var/opt",
		"/loop":         "-> /loop",
		"/chain1":       "-> chain2",
		"/chain2":       "-> /opt/x/..",
		"/a file/x y/z": "",
	})
	tr := newTree(Config{Root: h.root + "/"})
	for _, tt := range []struct{ name, want string }{
		{"/opt/firsthop/bin", "/var/opt/firsthop/bin"}, // not the machine's own /var/opt
		{"/lib/a", "/usr/lib/a"},
		{"/up/down", "/etc"}, // .. stops at the root
		{"/../../etc", "/etc"},
		{"/chain1", "/var/opt"},
		{"/etc/deep/x", "/var/opt/x"},
		{"/not/there", "/not/there"},
		{"/a file/x y", "/a file/x y"},
		{"/", ""},
	} {
		got, err := tr.dir(tt.name)
		if err != nil || got != h.root+tt.want+"/" {
			t.Errorf("dir(%q) = %q, %v, want %q", tt.name, got, err, h.root+tt.want+"/")
		}
	}
	if got, err := tr.dir("/loop/x"); err == nil {
		t.Errorf("dir of a loop = %q, want an error", got)
	}
}

func FuzzDirStaysBelowRoot(f *testing.F) {
	f.Add("/opt/firsthop", "/var/../..", "../../..")
	f.Add("/../x/./y", "..", "/")
	f.Fuzz(func(t *testing.T, name, link1, link2 string) {
		root := t.TempDir()
		for i, link := range []string{link1, link2} {
			if link == "" || strings.ContainsRune(link, 0) || len(link) > 200 {
				return
			}
			if err := os.Symlink(link, fmt.Sprintf("%s/l%d", root, i)); err != nil {
				return
			}
		}
		for _, n := range []string{name, "/l0/" + name, name + "/l1", "/l0/l1/" + name} {
			got, err := newTree(Config{Root: root}).dir(n)
			if err == nil && got != root+"/" && !strings.HasPrefix(filepath.Clean(got), root+"/") {
				t.Fatalf("dir(%q) = %q leaves %q", n, got, root)
			}
		}
	})
}
