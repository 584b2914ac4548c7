package hostfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

const nobody = 65534

func write(t *testing.T, root, name, content string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadFileStaysBelowTheRoot(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/real/file", "inside")
	for link, target := range map[string]string{"abs": "/real/file", "rel": "real/file", "up": "../../../../real/file", "dir": "/real", "chain": "/abs", "loop": "/loop", "real/back": "../dir/../abs"} {
		must(t, os.Symlink(target, filepath.Join(root, link)))
	}
	f := FS{Root: root}
	for _, p := range []string{"/real/file", "real/file", "/abs", "/rel", "/up", "/dir/file", "/chain", "/../../real/file", "/dir/../abs", "/real/back", "//real/./file"} {
		for name, read := range map[string]func(string) ([]byte, error){"any": f.ReadFile, "trusted": f.ReadTrusted} {
			if b, err := read(p); err != nil || string(b) != "inside" {
				t.Errorf("%s, %s: %q, %v", p, name, b, err)
			}
		}
	}
	if _, err := f.ReadFile("/loop"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop of links: %v", err)
	}
	if _, err := f.ReadFile("/real/none"); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "/real/none:") {
		t.Errorf("no file: %v", err)
	}
	if _, err := f.ReadFile("/real/file/more"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

func TestReadFileTakesRegularFilesOnly(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/dir/file", "")
	must(t, unix.Mkfifo(root+"/fifo", 0o600))
	must(t, os.WriteFile(root+"/large", make([]byte, MaxFile+1), 0o600))
	must(t, os.WriteFile(root+"/full", make([]byte, MaxFile), 0o600))
	f := FS{Root: root}
	for p, want := range map[string]string{"/dir": "not a regular file", "/fifo": "not a regular file", "/large": "larger than"} {
		if _, err := f.ReadFile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", p, err, want)
		}
	}
	if b, err := f.ReadTrusted("/full"); err != nil || len(b) != MaxFile {
		t.Errorf("a file of the largest size: %d bytes, %v", len(b), err)
	}
}

func TestReadTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of others")
	}
	chown := func(t *testing.T, p string) { must(t, os.Lchown(p, nobody, nobody)) }
	for name, tc := range map[string]struct {
		path    string
		prepare func(t *testing.T, root string)
		why     string // "" is trusted
	}{
		"root's file":                     {"/etc/x/file", nil, ""},
		"a file of a user":                {"/etc/x/file", func(t *testing.T, r string) { chown(t, r+"/etc/x/file") }, "it belongs to user 65534"},
		"a file that its group may write": {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r+"/etc/x/file", 0o664)) }, "it is writable by group 0"},
		"a file that all may write":       {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r+"/etc/x/file", 0o646)) }, "it is writable by everybody"},
		"a parent of a user":              {"/etc/x/file", func(t *testing.T, r string) { chown(t, r+"/etc") }, "/etc belongs to user 65534"},
		"a parent that its group may write": {"/etc/x/file", func(t *testing.T, r string) {
			must(t, os.Chown(r+"/etc/x", 0, 1000))
			must(t, os.Chmod(r+"/etc/x", 0o775))
		}, "/etc/x is writable by group 1000"},
		"a parent that all may write":       {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r+"/etc", 0o777)) }, "/etc is writable by everybody"},
		"root's file in a sticky directory": {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r+"/etc/x", 0o777|os.ModeSticky)) }, ""},
		"a user's file in a sticky directory": {"/etc/x/file", func(t *testing.T, r string) {
			must(t, os.Chmod(r+"/etc/x", 0o777|os.ModeSticky))
			chown(t, r+"/etc/x/file")
		}, "it belongs to user 65534"},
		"a user's sticky directory": {"/etc/x/file", func(t *testing.T, r string) {
			must(t, os.Chmod(r+"/etc/x", 0o777|os.ModeSticky))
			chown(t, r+"/etc/x")
		}, "/etc/x belongs to user 65534"},
		"a sticky file that all may write": {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r+"/etc/x/file", 0o666|os.ModeSticky)) }, "it is writable by everybody"},
		"root's link to root's file":       {"/link", func(t *testing.T, r string) { must(t, os.Symlink("/etc/x/file", r+"/link")) }, ""},
		"root's link to a user's file": {"/link", func(t *testing.T, r string) {
			must(t, os.Symlink("/etc/x/file", r+"/link"))
			chown(t, r+"/etc/x/file")
		}, "/etc/x/file belongs to user 65534"},
		"root's link through a user's directory": {"/link", func(t *testing.T, r string) {
			must(t, os.Symlink("/home/../etc/x/file", r+"/link"))
			must(t, os.Mkdir(r+"/home", 0o755))
			chown(t, r+"/home")
		}, "/home belongs to user 65534"},
		"a user's link to root's file": {"/link", func(t *testing.T, r string) {
			must(t, os.Symlink("/etc/x/file", r+"/link"))
			chown(t, r+"/link")
		}, "it belongs to user 65534"},
		"a user's link for a parent": {"/way/file", func(t *testing.T, r string) {
			must(t, os.Symlink("etc/x", r+"/way"))
			chown(t, r+"/way")
		}, "/way belongs to user 65534"},
		"root's file with a second name in a user's directory": {"/home/u/file", func(t *testing.T, r string) {
			must(t, os.MkdirAll(r+"/home/u", 0o755))
			must(t, os.Link(r+"/etc/x/file", r+"/home/u/file"))
			chown(t, r+"/home/u")
		}, "/home/u belongs to user 65534"},
		"an ACL that lets a user write": {"/etc/x/file", func(t *testing.T, r string) {
			// user::rw-, user:nobody:rw-, group::r--, mask::rw-, other::r-- (posix_acl_xattr.h)
			acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xfe, 0xff, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
			if err := unix.Setxattr(r+"/etc/x/file", "system.posix_acl_access", acl, 0); errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("no ACLs on this file system")
			} else {
				must(t, err)
			}
		}, "it is writable by group 0"},
		"a root that a user may write": {"/etc/x/file", func(t *testing.T, r string) { must(t, os.Chmod(r, 0o777)) }, "/ is writable by everybody"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			must(t, os.Chmod(root, 0o755))
			write(t, root, "/etc/x/file", "x")
			must(t, os.Chmod(root+"/etc/x/file", 0o600))
			if tc.prepare != nil {
				tc.prepare(t, root)
			}
			f := FS{Root: root}
			b, err := f.ReadTrusted(tc.path)
			if check := f.CheckTrusted(tc.path); (check == nil) != (err == nil) {
				t.Errorf("ReadTrusted says %v, CheckTrusted %v", err, check)
			}
			if tc.why == "" {
				if err != nil || string(b) != "x" {
					t.Fatalf("%q, %v", b, err)
				}
				return
			}
			want := "ignored " + tc.path + ": " + tc.why + "; only root may write files that firsthop trusts"
			if !errors.Is(err, ErrUntrusted) || err.Error() != want || b != nil {
				t.Fatalf("%q, %v, want %q", b, err, want)
			}
			if b, err := f.ReadFile(tc.path); err != nil || string(b) != "x" {
				t.Errorf("where trust does not matter: %q, %v", b, err)
			}
		})
	}
}

func TestGlob(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"/pods/b/containers/kube-proxy/x", "/pods/a/containers/kube-proxy/x", "/pods/c/containers/coredns/x", "/d/2.conf", "/d/1.conf", "/d/1.txt"} {
		write(t, root, p, "")
	}
	must(t, os.Symlink("/d", root+"/link"))
	must(t, os.Symlink("/nowhere", root+"/d/3.conf"))
	f := FS{Root: root}
	for pattern, want := range map[string][]string{
		"/pods/*/containers/kube-proxy": {"/pods/a/containers/kube-proxy", "/pods/b/containers/kube-proxy"},
		"/link/*.conf":                  {"/link/1.conf", "/link/2.conf", "/link/3.conf"},
		"/d/1.conf":                     {"/d/1.conf"},
		"/d/4.conf":                     nil,
		"/none/*":                       nil,
		"/d/[":                          nil,
	} {
		if got := f.Glob(pattern); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", pattern, got, want)
		}
	}
	if !f.Exists("/link/1.conf") || f.Exists("/d/3.conf") || f.Exists("/none") {
		t.Error("Exists follows links to what is there, and to nothing else")
	}
}

// A user who may mount FUSE makes the owners and modes of its files up.
func TestMountedByRoot(t *testing.T) {
	for options, want := range map[string]bool{
		"rw,user_id=1000,group_id=1000,allow_other": false,
		"rw,user_id=0,group_id=0,allow_other":       true,
		"rw":                                        false,
	} {
		if got := mountedByRoot(&mountinfo.Info{VFSOptions: options}); got != want {
			t.Errorf("%s: %v", options, got)
		}
	}
	if mountedByRoot(nil) {
		t.Error("a mount that no table has is root's")
	}
}

func TestMountOf(t *testing.T) {
	f, err := os.Open("/proc/self/stat")
	must(t, err)
	defer f.Close()
	if m := MountOf(int(f.Fd())); m == nil || m.FSType != "proc" || m.ID != MountID(int(f.Fd())) {
		t.Errorf("found %+v", m)
	}
	if id := parseMountID("pos:\t0\nflags:\t02\nmnt_id:\t31\nino:\t4\n"); id != 31 {
		t.Errorf("mnt_id %d", id)
	}
	if id := parseMountID("pos:\t0\n"); id != 0 {
		t.Errorf("mnt_id %d", id)
	}
}

func TestResolve(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/real/file", "")
	for link, target := range map[string]string{"abs": "/real", "up": "../../../real", "dangling": "/gone/away", "loop": "/loop"} {
		must(t, os.Symlink(target, filepath.Join(root, link)))
	}
	f := FS{Root: root}
	for name, want := range map[string]struct {
		at  string
		err error
	}{
		"/":                {"/", nil},
		"/abs/file":        {"/real/file", nil},
		"/up/../../real/.": {"/real", nil},
		"/abs/none/x":      {"/real/none/x", unix.ENOENT},
		"/abs/none/../abs": {"/real/abs", unix.ENOENT},
		"/dangling/x":      {"/gone/away/x", unix.ENOENT},
		"/abs/file/x":      {"/real/file/x", unix.ENOTDIR},
		"/none/../../up":   {"/real", unix.ENOENT},
		"/loop/x":          {"", unix.ELOOP},
	} {
		if at, err := f.Resolve(name); at != want.at || !errors.Is(err, want.err) {
			t.Errorf("%s: %q, %v, want %q, %v", name, at, err, want.at, want.err)
		}
	}
}

func TestOpenDirVisitsEveryStep(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/real/dir/file", "")
	must(t, os.Symlink("/real", root+"/link"))
	var visited []string
	see := func(at string, _ int, _ *unix.Stat_t) error {
		visited = append(visited, at)
		return nil
	}
	fd, at, err := FS{Root: root}.OpenDir("/link/dir", see)
	must(t, err)
	defer unix.Close(fd)
	var got, want unix.Stat_t
	must(t, unix.Fstat(fd, &got))
	must(t, unix.Stat(root+"/real/dir", &want))
	if at != "/real/dir" || got.Ino != want.Ino || !slices.Equal(visited, []string{"/", "/link", "/real", "/real/dir"}) {
		t.Errorf("opened %s (inode %d, want %d) by %v", at, got.Ino, want.Ino, visited)
	}
	if _, _, err := (FS{Root: root}).OpenDir("/link/dir/file", see); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	refuse := errors.New("refused")
	if _, _, err := (FS{Root: root}).OpenDir("/link/dir", func(at string, _ int, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return refuse
		}
		return nil
	}); !errors.Is(err, refuse) {
		t.Errorf("a step that is refused: %v", err)
	}
}

// A user's process may work in a directory of root's that is below one of the user's, and have any root.
func TestReadTrustedJudgesWhatLinksOfProcLeadTo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to change the root of a thread")
	}
	top := t.TempDir()
	write(t, top, "open/dir/file", "x")
	write(t, top, "theirs/file", "x")
	must(t, os.Chmod(top+"/open", 0o777))
	must(t, os.Chown(top+"/theirs", nobody, nobody))
	must(t, ns.Do(func() error {
		self := fmt.Sprintf("/proc/%d", unix.Gettid())
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(top+"/open/dir")); err != nil {
			return err
		}
		if _, err := (FS{}).ReadTrusted(self + "/cwd/file"); !errors.Is(err, ErrUntrusted) {
			t.Errorf("below a directory that everybody may write: %v", err)
		}
		if err := unix.Chroot(top + "/theirs"); err != nil {
			return err
		}
		done := make(chan error)
		go func() { _, err := (FS{}).ReadTrusted(self + "/root/file"); done <- err }() // by a thread with our own root
		if err := <-done; !errors.Is(err, ErrUntrusted) {
			t.Errorf("below a root of somebody else: %v", err)
		}
		return nil
	}))
}

// Between the look at a file and its reading, others may exchange it.
func TestReadJudgesWhatItReads(t *testing.T) {
	root := t.TempDir()
	write(t, root, "file", "good")
	write(t, root, "other", "bad")
	must(t, os.Chmod(root+"/other", 0o666))
	refused := errors.New("refused")
	b, err := FS{Root: root}.read("/file", func(at string, _ int, st *unix.Stat_t) error {
		if st.Mode&0o002 != 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return refused
		}
		if at == "/file" {
			return os.Rename(root+"/other", root+"/file")
		}
		return nil
	})
	if !errors.Is(err, refused) {
		t.Errorf("read %q, %v", b, err)
	}
}

// The text of /proc/PID/root is a path in that process's mount namespace.
func TestOpenDirFollowsLinksOfProc(t *testing.T) {
	fd, at, err := FS{}.OpenDir("/proc/self/root/proc", func(string, int, *unix.Stat_t) error { return nil })
	must(t, err)
	defer unix.Close(fd)
	if !strings.HasSuffix(at, "/root/proc") || !OnProc(fd) {
		t.Errorf("opened %s", at)
	}
}
