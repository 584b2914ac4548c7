package mounts

import (
	"cmp"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	// DefaultBPFFS is where the host's BPF file system belongs: systemd, cilium
	// and bpftool look there.
	DefaultBPFFS = "/sys/fs/bpf"
	// DefaultHostProc is where pods by custom mount the host's /proc.
	DefaultHostProc = "/host/proc"

	// sourcePrefix begins the source of every mount of ours, so that the mount
	// table itself says which mounts we may undo, even after a crash between
	// the mount and the note of it.
	sourcePrefix = "firsthop-"
)

// Config says where to look. The zero value is right on a host and in a pod
// with hostPID.
type Config struct {
	// Root is a prefix for the host's paths: "" or "/" to find it out, "/host"
	// or "/proc/1/root" in a container, a directory in a test.
	Root string
	// Path is the BPF file system, or the cgroup. For the BPF file system ""
	// means [DefaultBPFFS]; for the cgroup "" means the true root.
	Path string
	// Explicit says that the user gave Path: it is then a path in our own mount
	// namespace, whatever that is, and Root says nothing about it.
	Explicit bool
	// RunDir is a directory of the host below which cgroup2 is mounted when it
	// is mounted nowhere. "" means [instance.DefaultRunDir].
	RunDir string
	// Record, if set, is called before each change with what is about to be
	// done (KindMount, KindMkdir, KindUmount), the host's path, and for
	// a mount the source that will identify it in the mount table. An error
	// stops the change.
	Record func(kind instance.Kind, target, former string) error
}

func (c Config) record(kind instance.Kind, target, former string) error {
	if c.Record == nil {
		return nil
	}
	return c.Record(kind, target, former)
}

// mkdirAll makes a directory and those above it, each one recorded first.
func (c Config) mkdirAll(v view, dir string, mode os.FileMode) error {
	_, err := os.Stat(v.open(dir))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := c.mkdirAll(v, path.Dir(dir), mode); err != nil {
		return err
	}
	if err := c.record(instance.KindMkdir, dir, ""); err != nil {
		return err
	}
	if err := os.Mkdir(v.open(dir), mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// root is Root, cleaned; "" for the host's own.
func (c Config) root() string {
	return strings.TrimSuffix(filepath.Clean(cmp.Or(c.Root, "/")), "/")
}

func (c Config) bpffsPath() string { return cmp.Or(c.Path, DefaultBPFFS) }

// cgroupDir is where cgroup2 is mounted when it is mounted nowhere, with the links
// on the way followed: /run/firsthop may be an absolute one, which would lead out
// of the view.
func (c Config) cgroupDir(v view) string {
	dir := path.Join(cmp.Or(c.RunDir, instance.DefaultRunDir), "cgroup")
	at, err := v.resolve(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return dir
	}
	return at
}

// Sentinel errors, for errors.Is. The text around them says what to do.
var (
	// ErrNoHost: no way to the host's mount namespace was found.
	ErrNoHost = errors.New("no way to the host")
	// ErrAbsent: nothing is mounted where it should be.
	ErrAbsent = errors.New("not mounted")
	// ErrNoDirectory: there is no directory to mount on.
	ErrNoDirectory = errors.New("no such directory")
	// ErrWrongType: another file system is mounted there.
	ErrWrongType = errors.New("wrong file system type")
	// ErrNotEmpty: mounting there would hide files.
	ErrNotEmpty = errors.New("directory is not empty")
	// ErrReadOnly: the BPF file system is mounted read-only.
	ErrReadOnly = errors.New("mounted read-only")
	// ErrStacked: a second mount hides one that holds our pins.
	ErrStacked = errors.New("mounted twice")
	// ErrNotOurs: the mount was not made by firsthop.
	ErrNotOurs = errors.New("not mounted by firsthop")
	// ErrInUse: the mount still holds something, or something holds it.
	ErrInUse = errors.New("still in use")
	// ErrRefused: the kernel or a security module refused a call.
	ErrRefused = privileges.ErrRefused
	// ErrCgroup1: the path is in a cgroup v1 hierarchy.
	ErrCgroup1 = errors.New("cgroup v1")
	// ErrNotCgroup: the path is not a directory of cgroup2.
	ErrNotCgroup = errors.New("not a cgroup v2 directory")
	// ErrNotTrueRoot: the only cgroup2 to be seen is not the true root, or
	// cannot be shown to be it.
	ErrNotTrueRoot = errors.New("not the true root of the cgroup v2 hierarchy")
)
