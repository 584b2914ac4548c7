package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Dirs are the directories of an instance, as they were given: paths as this
// process sees them. Empty means the default, which is the host's, also from
// inside a container.
type Dirs struct {
	BPFFS    string
	Cgroup   string
	StateDir string
	RunDir   string
	Root     string // prefix of the host's files
}

// Own reports whether the instance has a bpffs or cgroup of its own: then it
// isn't the node's, and nothing is installed for the node's next boot.
func (d Dirs) Own() bool { return d.BPFFS != "" || d.Cgroup != "" }

// Validate says which directory can't be used as it was given: all must be
// absolute, and no file may be in the way.
func (d Dirs) Validate() error {
	for _, d := range []struct{ flag, path string }{
		{"--bpffs", d.BPFFS}, {"--cgroup", d.Cgroup}, {"--state-dir", d.StateDir}, {"--run-dir", d.RunDir}, {"--root", d.Root},
	} {
		if d.path == "" {
			continue
		}
		if !filepath.IsAbs(d.path) || strings.ContainsAny(d.path, "\x00\n") {
			return fmt.Errorf("%s %q: want an absolute path", d.flag, d.path)
		}
		st, err := os.Stat(d.path)
		switch {
		case err == nil && !st.IsDir():
			return fmt.Errorf("%s %s: it is a file: give a directory", d.flag, d.path)
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
			return fmt.Errorf("%s %s: %w: give a directory, or a place for a new one", d.flag, d.path, errors.Unwrap(err))
		case errors.Is(err, os.ErrNotExist) && d.flag == "--root":
			return fmt.Errorf("%s %s: there is no such directory", d.flag, d.path)
		}
	}
	return nil
}

// ForBPFFS is where the bpffs is looked for.
func (d Dirs) ForBPFFS() Config { return d.config(d.BPFFS) }

// ForCgroup is where the cgroup is looked for.
func (d Dirs) ForCgroup() Config { return d.config(d.Cgroup) }

func (d Dirs) config(path string) Config {
	return Config{Root: d.Root, Path: path, Explicit: path != "", RunDir: d.RunDir}
}

// Places are an instance's directories as this process reaches them.
type Places struct {
	Given    Dirs
	HostRoot string // prefix of the host's files; "" where they are ours
	Proc     string // the host's /proc
	StateDir string
	RunDir   string
	NoHost   error // why the host can't be reached from here; nil for an instance of its own
	Chroot   bool  // we are in a chroot on the host, as when an image is built: hostRoot is outside of it
}

func (d Dirs) Places() Places {
	p := Places{Given: d, HostRoot: strings.TrimSuffix(d.Root, "/"), StateDir: d.StateDir, RunDir: d.RunDir}
	if d.Root == "" && !d.Own() {
		h, err := FindHost(Config{})
		p.HostRoot, p.NoHost, p.Chroot = h.Prefix, err, h.Chroot
	}
	p.Proc = p.HostRoot + "/proc"
	if proc, ok := strings.CutSuffix(p.HostRoot, "/1/root"); ok {
		p.Proc = proc
	}
	return p.WithDefaults()
}

// WithDefaults fills in the directories that were not given.
func (p Places) WithDefaults() Places {
	if p.StateDir == "" {
		p.StateDir = inRoot(p.HostRoot, instance.DefaultStateDir)
	}
	if p.RunDir == "" {
		p.RunDir = inRoot(p.HostRoot, instance.DefaultRunDir)
	}
	return p
}

// inRoot finds a path of the host from here, with every link on the way followed
// as the host would: /var/lib/firsthop may be an absolute link to another disk.
func inRoot(root, path string) string {
	if at, _ := (hostfs.FS{Root: root}).Resolve(path); at != "" {
		path = at
	}
	return filepath.Join("/", root, path)
}

// OnHost is a path of ours as the host has it: for what runs there, and for the
// list of changes, which may be read from elsewhere.
func (p Places) OnHost(path string) string {
	if rest, ok := strings.CutPrefix(path, p.HostRoot+"/"); ok && p.HostRoot != "" {
		return "/" + rest
	}
	return path
}

// Local is the way to a path of the host from here.
func (p Places) Local(path string) string {
	if there := p.HostRoot + path; p.HostRoot != "" {
		if _, err := os.Lstat(there); err == nil {
			return there
		}
	}
	return path
}

// OtherNetwork reports whether the node's instance runs in another network
// namespace than the host's first process, as far as that can be seen.
func (p Places) OtherNetwork() bool {
	if p.Given.Own() {
		return false
	}
	return ns.Differ(p.Proc+"/1/ns/net", "/proc/thread-self/ns/net")
}

// TrustWarnings report who else may change the instance's directories.
func (p Places) TrustWarnings(run instance.Trust) []string {
	out := run.Warnings("run directory", p.RunDir, "what its files say is not believed")
	if state, err := instance.Examine(p.StateDir); err == nil {
		out = append(out, state.Warnings("state directory", p.StateDir, "what its files say is not believed, and nothing is saved there")...)
	}
	return out
}

// Examine is TrustWarnings for who holds no lock.
func (p Places) Examine() []string {
	run, err := instance.Examine(p.RunDir)
	if err != nil {
		run = instance.Trust{} // it isn't there, or is not to be seen
	}
	return p.TrustWarnings(run)
}

// errChroot keeps what is about a running machine from being done to the one
// that only builds an image.
var errChroot = errors.New("this is a chroot, and the machine outside of it would be changed")

// RefuseChroot is for what changes the running machine.
func (p Places) RefuseChroot(instead string) error {
	if !p.Chroot {
		return nil
	}
	return fmt.Errorf("%w: run it outside, or give --root %s if that machine is meant%s", errChroot, p.HostRoot, instead)
}
