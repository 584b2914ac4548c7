// Package hostfs reads files of the host, and tells which of them count.
//
// firsthop runs as root and decides by files where the node's API servers are and which program gives it credentials.
// A file that others than root can write must not take part in that. So there are two ways to read one:
// [FS.ReadTrusted] for everything that decides something, [FS.ReadFile] for the rest.
//
// # Trust
//
// A file is trusted if the file, every directory on the way to it and every symbolic link on the way belong to uid 0,
// and neither their group nor others may write them. A POSIX ACL that grants more shows in the group's bits, which hold
// the ACL's mask then.
//
//   - The sticky bit makes up for a directory that others may write (/tmp, a tmpfs, /nix/store): they can add entries,
//     but not replace or remove those of root, and an entry of theirs is not trusted. It is the rule by which the kernel
//     follows links in such directories (fs.protected_symlinks).
//   - FS.Root is given by root, as a flag or found as the root of process 1: it is checked itself, what is above it is
//     not.
//   - uid 0 is the one of our user namespace. An id that it does not map shows as the overflow uid, which is not
//     trusted: it may be anybody. firsthop needs the machine's first user namespace to load programs, so there both
//     are one.
//   - A FUSE file system that a user has mounted says of its files what the user wants, so they are not trusted.
//
// Everything is checked on opened file descriptors, one path component after the other, so that nothing can be exchanged
// between a check and its use.
package hostfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFile bounds what is read of any file of the host. A kubeconfig is 10 kB; a manifest or a ConfigMap can at most be
// 1 MiB in the API.
const MaxFile = 1 << 20

// FS is the host's file system. Paths are as the host sees them; symbolic links are followed below Root, absolute ones
// too: the kubelet's client certificate is one (kubelet-client-current.pem).
type FS struct {
	// Root comes before every path: "" or "/" on the host, "/proc/1/root" or a directory in a container and in tests.
	Root string
}

// ReadFile reads a regular file, whatever its owner and mode.
func (f FS) ReadFile(name string) ([]byte, error) { return f.read(name, nil) }

// ReadTrusted reads a regular file that only root may write. For any other it returns an *[UntrustedError].
func (f FS) ReadTrusted(name string) ([]byte, error) { return f.read(name, trusted(name)) }

// CheckTrusted returns nil if a file or directory exists and only root may write it.
func (f FS) CheckTrusted(name string) error {
	w, err := f.walk(name, trusted(name))
	if err == nil {
		w.close()
	}
	return err
}

// ModTime is when a file was last written.
func (f FS) ModTime(name string) (time.Time, error) {
	w, err := f.walk(name, nil)
	if err != nil {
		return time.Time{}, err
	}
	defer w.close()
	return time.Unix(w.st.Mtim.Unix()), nil
}

// Exists reports whether the host has something at a path.
func (f FS) Exists(name string) bool {
	w, err := f.walk(name, nil)
	if err != nil {
		return false
	}
	w.close()
	return true
}

func (f FS) read(name string, visit Visit) ([]byte, error) {
	w, err := f.walk(name, visit)
	if err != nil {
		return nil, err
	}
	defer w.close()
	file, err := w.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, explain(name, err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, explain(name, err)
	}
	if len(b) > MaxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, MaxFile)
	}
	return b, nil
}

// Glob lists the paths that match a pattern, in lexical order. A wildcard may stand in any component. It does not look
// at who may write them: reading them does.
func (f FS) Glob(pattern string) []string {
	found := []string{"/"}
	for _, c := range strings.Split(path.Clean("/" + pattern)[1:], "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(c, `*?[\`) {
				next = append(next, path.Join(dir, c))
				continue
			}
			for _, name := range f.Names(dir) {
				if ok, _ := filepath.Match(c, name); ok {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		found = next
	}
	found = slices.DeleteFunc(found, func(p string) bool { return !f.exists(p) })
	slices.Sort(found)
	return found
}

// exists is Exists, but a link that leads nowhere exists too, as for a shell's pattern.
func (f FS) exists(name string) bool {
	w, err := f.walk(path.Dir(name), nil)
	if err != nil {
		return false
	}
	defer w.close()
	var st unix.Stat_t
	return unix.Fstatat(w.fd, path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Names lists a directory, in no order; none if it cannot be read. It does not look at who may write it.
func (f FS) Names(dir string) []string {
	w, err := f.walk(dir, nil)
	if err != nil {
		return nil
	}
	defer w.close()
	return namesIn(w.fd)
}

// NamesIn is Names for a directory that is open, with O_PATH even.
func NamesIn(dir *os.File) []string { return namesIn(int(dir.Fd())) }

func namesIn(at int) []string {
	fd, err := unix.Openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	d := os.NewFile(uintptr(fd), ".")
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	return names
}

// trusted is the Visit for a path that only root may write.
func trusted(name string) Visit {
	return func(at string, fd int, st *unix.Stat_t) error {
		if why := Judge(fd, st); why != "" {
			return &UntrustedError{Path: name, At: at, Why: why}
		}
		return nil
	}
}

// explain names the path that was asked for instead of the component that failed.
func explain(name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", name, pe.Err)
	}
	return err
}
