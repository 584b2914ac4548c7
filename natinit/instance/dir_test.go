package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives files to other users")
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// chmod is os.Chmod with numbers as chmod(1) has them.
func chmod(path string, mode uint32) error { return unix.Chmod(path, mode) }

func TestExamineSaysWhoElseMayWrite(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name    string
		arrange func(t *testing.T, top, dir string) // dir is top/up/dir
		doubts  []string                            // of the directories below top, relative
		exposed []string
	}{
		{name: "root's alone", arrange: func(*testing.T, string, string) {}},
		{"another's", func(t *testing.T, _, dir string) { must(t, os.Chown(dir, nobody, 0)) }, []string{"up/dir belongs to user 65534"}, nil},
		{"writable by a group", func(t *testing.T, _, dir string) { must(t, chmod(dir, 0o770)) }, []string{"up/dir is writable by group 0"}, nil},
		{"writable by all", func(t *testing.T, _, dir string) { must(t, chmod(dir, 0o777)) }, []string{"up/dir is writable by everybody"}, nil},
		{"sticky itself", func(t *testing.T, _, dir string) { must(t, chmod(dir, 0o1777)) }, []string{"up/dir is writable by everybody"}, nil},
		{"below another's", func(t *testing.T, top, _ string) { must(t, os.Chown(top+"/up", nobody, 0)) }, []string{"up belongs to user 65534"}, nil},
		{"below one that all may write", func(t *testing.T, top, _ string) { must(t, chmod(top+"/up", 0o777)) }, []string{"up is writable by everybody"}, nil},
		{"below a sticky one", func(t *testing.T, top, _ string) { must(t, chmod(top+"/up", 0o1777)) }, nil, []string{"up"}},
		{"another's in a sticky one", func(t *testing.T, top, dir string) { must(t, chmod(top+"/up", 0o1777), os.Chown(dir, nobody, 0)) }, []string{"up/dir belongs to user 65534"}, []string{"up"}},
		{"a link to root's", func(t *testing.T, top, dir string) {
			must(t, os.Mkdir(top+"/disk", 0o700), os.Remove(dir), os.Symlink(top+"/disk", dir))
		}, nil, nil},
		{"a link to another's", func(t *testing.T, top, dir string) {
			must(t, os.Mkdir(top+"/disk", 0o700), os.Chown(top+"/disk", nobody, 0), os.Remove(dir), os.Symlink("../disk", dir))
		}, []string{"disk belongs to user 65534"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			top := t.TempDir()
			must(t, os.MkdirAll(top+"/up/dir", 0o700))
			tc.arrange(t, top, top+"/up/dir")
			trust, err := Examine(top + "/up/dir")
			must(t, err)
			// What is above top is the machine's: /tmp may be sticky.
			below := func(list []string) (out []string) {
				for _, s := range list {
					if rest, ok := strings.CutPrefix(s, top+"/"); ok {
						out = append(out, rest)
					}
				}
				return out
			}
			if got := below(trust.Doubts); !slices.Equal(got, tc.doubts) {
				t.Errorf("doubts %q, want %q", got, tc.doubts)
			}
			if got := below(trust.Exposed); !slices.Equal(got, tc.exposed) {
				t.Errorf("exposed below %q, want %q", got, tc.exposed)
			}
			if err := trust.Err(); errors.Is(err, ErrUntrusted) != (len(tc.doubts) > 0) {
				t.Errorf("Err says %v", err)
			}
		})
	}
}

// TestOpenFollowsNoLinksOfOthers: root would write its files into a directory that they choose.
func TestOpenFollowsNoLinksOfOthers(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	must(t, os.Mkdir(top+"/disk", 0o700), os.Symlink("disk", top+"/link"), os.Lchown(top+"/link", nobody, 0))
	_, err := Acquire(t.Context(), top+"/link")
	if !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "is a link that belongs to user 65534") {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(top + "/disk"); len(entries) > 0 {
		t.Errorf("it made %v", entries)
	}
}

func TestOpenFollowsLinksBelowTheRootOfAProcess(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/root/disk/firsthop", 0o700), os.MkdirAll(dir+"/root/lib", 0o755), os.Symlink("/disk/firsthop", dir+"/root/lib/firsthop"))
	child := startChrooted(t, dir+"/root")
	d, err := Open(child + "/lib/firsthop")
	must(t, err)
	defer d.Close()
	must(t, d.replace("x", strings.NewReader("there"), Writing{}))
	if got, err := os.ReadFile(dir + "/root/disk/firsthop/x"); string(got) != "there" {
		t.Errorf("the other root has %q, %v", got, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600), os.Symlink("loop", dir+"/loop"), os.Symlink("/gone/away", dir+"/dangling"))
	for path, want := range map[string]error{
		dir + "/file":     unix.ENOTDIR,
		dir + "/file/x":   unix.ENOTDIR,
		dir + "/loop":     unix.ELOOP,
		dir + "/dangling": fs.ErrNotExist,
		dir + "/gone":     fs.ErrNotExist,
	} {
		if d, err := Open(path); !errors.Is(err, want) {
			t.Errorf("%s: got %v, %v, want %v", path, d, err, want)
		}
	}
	if _, err := Open("relative"); err == nil {
		t.Error("a relative path is opened")
	}
}

func TestReadBelievesOnlyRoot(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name    string
		arrange func(t *testing.T, dir, file string)
		want    error
	}{
		{"ours", func(*testing.T, string, string) {}, nil},
		{"absent", func(t *testing.T, _, file string) { must(t, os.Remove(file)) }, fs.ErrNotExist},
		{"in another's directory", func(t *testing.T, dir, _ string) { must(t, os.Chown(dir, nobody, 0)) }, ErrUntrusted},
		{"absent in another's directory", func(t *testing.T, dir, file string) { must(t, os.Chown(dir, nobody, 0), os.Remove(file)) }, fs.ErrNotExist},
		{"another's", func(t *testing.T, _, file string) { must(t, os.Chown(file, nobody, 0)) }, ErrUntrusted},
		{"writable by all", func(t *testing.T, _, file string) { must(t, chmod(file, 0o666)) }, ErrUntrusted},
		{"a link", func(t *testing.T, dir, file string) {
			must(t, os.Rename(file, dir+"/other"), os.Symlink("other", file))
		}, ErrNotRegular},
		{"a FIFO", func(t *testing.T, _, file string) { must(t, os.Remove(file), unix.Mkfifo(file, 0o600)) }, ErrNotRegular},
		{"a directory", func(t *testing.T, _, file string) { must(t, os.Remove(file), os.Mkdir(file, 0o700)) }, ErrNotRegular},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			must(t, os.WriteFile(file, []byte("text"), 0o600))
			tc.arrange(t, dir, file)
			got, err := ReadFile(file)
			if !errors.Is(err, tc.want) || tc.want == nil && string(got) != "text" || tc.want != nil && got != nil {
				t.Errorf("got %q, %v, want %v", got, err, tc.want)
			}
		})
	}
}

func TestReplaceAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, text := range []string{"one", "two"} {
		for _, durable := range []bool{false, true} {
			must(t, WriteFile(path, []byte(text), Writing{Durable: durable}))
			if data, _ := os.ReadFile(path); string(data) != text {
				t.Errorf("it is %q, want %q", data, text)
			}
		}
	}
	if err := WriteFile(filepath.Join(dir, "gone", "x"), nil, Writing{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	failed := errors.New("no label")
	if err := WriteFile(path, []byte("three"), Writing{Prepare: func(*os.File) error { return failed }}); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "two" {
		t.Errorf("a write that failed left %q", data)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func TestReplaceFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "file")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600), os.Symlink(victim, path))
	must(t, WriteFile(path, []byte("ours"), Writing{Mode: 0o644}))
	if data, _ := os.ReadFile(victim); string(data) != "precious" {
		t.Errorf("the victim has %q", data)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != 0o644 {
		t.Errorf("the file is %v, %v", st, err)
	}
}

func TestModesDoNotDependOnTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o077, 0o777} {
		func() {
			former := unix.Umask(umask)
			defer unix.Umask(former)
			dir := t.TempDir()
			must(t, os.Chmod(dir, 0o755))
			state := dir + "/a/b"
			must(t, Make(Missing(state), 0o700), WriteFile(state+"/file", nil, Writing{}))
			lock, err := Acquire(t.Context(), state)
			must(t, err)
			defer lock.Release()
			for path, want := range map[string]fs.FileMode{dir + "/a": 0o755, state: 0o700, state + "/file": 0o600, state + "/lock": 0o600 &^ fs.FileMode(umask)} {
				if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
					t.Errorf("umask %04o: %s is %v, %v, want mode %04o", umask, path, st.Mode(), err, want)
				}
			}
		}()
	}
}

func TestMakeSaysWhatIsInTheWay(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600), os.Symlink("/gone/away", dir+"/dangling"))
	for path, want := range map[string]string{
		dir + "/file":     "not a directory",
		dir + "/file/x":   "not a directory",
		dir + "/dangling": "is a link to /gone/away",
	} {
		if err := Make([]string{path}, 0o700); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	must(t, Make([]string{dir}, 0o700)) // it is there: another was faster
}
