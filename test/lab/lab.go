package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is one isolated machine. Its methods are safe for concurrent use, but for Close.
type Lab struct {
	Name     string // fh-<pid>-<start time>-<number>: of the namespace (see `ip netns`), the cgroup and the directory
	Dir      string // a temporary directory of the lab's own; everything below it is removed, mounts too
	Netns    string // the path of the network namespace, below /run/netns
	Cgroup   string // the path of the cgroup, directly below the root of the v2 hierarchy
	BPFFS    string // the mount point of the lab's bpffs; only a path, with nothing there, after WithoutBPFFS
	StateDir string // for --state-dir: exists, empty
	RunDir   string // for --run-dir: exists, empty
	// CgroupsV1 are the lab's cgroups of version 1, after WithCgroupsV1. Commands are not in them.
	CgroupsV1 []Hierarchy

	space
	nl       *netlink.Handle
	cgroupFD *os.File
	starter  *starter
	pods     []*Pod
	hosts    []*Host

	mu     sync.Mutex // guards pods, hosts and closed
	closed bool
}

// Option changes how a lab is made.
type Option func(*options)

type options struct {
	withoutBPFFS, cgroupsV1 bool
}

// WithoutBPFFS leaves Lab.BPFFS unmounted and absent, for tests of the mounting itself. Whatever they mount there is
// unmounted with the lab.
func WithoutBPFFS() Option {
	return func(o *options) { o.withoutBPFFS = true }
}

// WithCgroupsV1 makes a cgroup in each hierarchy of version 1 that the machine has, for what needs controllers.
func WithCgroupsV1() Option {
	return func(o *options) { o.cgroupsV1 = true }
}

// sweepOnce makes the first lab of a process remove what dead processes left behind.
var sweepOnce sync.Once

// number tells apart the labs of one process.
var number atomic.Uint32

// New makes a lab that is removed when the test ends. It skips the test when the user is not root, and fails it when
// the kernel lacks something: a feature that is absent must not pass as a success.
func New(t testing.TB, opts ...Option) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := Create(opts...)
	if err != nil {
		t.Fatal("create lab:", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error("close lab:", err)
		}
	})
	return l
}

// Create makes a lab; the caller closes it. Tests use New.
func Create(opts ...Option) (l *Lab, err error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	// A failed sweep is no reason not to work: what it could not remove has a name of its own.
	sweepOnce.Do(func() { _ = Sweep() })

	name := fmt.Sprintf("%s%d", ownPrefix(), number.Add(1))
	l = &Lab{Name: name, Dir: filepath.Join(os.TempDir(), name), space: space{netns.None()}}
	l.BPFFS = filepath.Join(l.Dir, "bpffs")
	l.StateDir = filepath.Join(l.Dir, "state")
	l.RunDir = filepath.Join(l.Dir, "run")
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()

	for _, dir := range []string{l.Dir, l.StateDir, l.RunDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return l, err
		}
	}
	if !o.withoutBPFFS {
		if err := mountBPFFS(l.BPFFS); err != nil {
			return l, err
		}
	}
	if err := l.createCgroup(); err != nil {
		return l, err
	}
	if o.cgroupsV1 {
		if err := l.createCgroupsV1(); err != nil {
			return l, err
		}
	}
	if l.ns, l.nl, err = createNetns(name); err != nil {
		return l, err
	}
	l.Netns = netnsPath(name)
	if err := l.configureNetns(); err != nil {
		return l, err
	}
	l.starter, err = newStarter(l.ns)
	return l, err
}

// mountBPFFS mounts a bpffs the way that systemd does.
func mountBPFFS(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("bpf", dir, "bpf", flags, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}

// Flags returns the flags that make firsthop work in this lab and nowhere else.
func (l *Lab) Flags() []string {
	return []string{"--bpffs", l.BPFFS, "--cgroup", l.Cgroup, "--state-dir", l.StateDir, "--run-dir", l.RunDir}
}

// Close kills every process of the lab, then removes the lab. It goes on after an error and returns all of them. The
// second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true

	var errs []error
	if l.Cgroup != "" {
		errs = append(errs, removeCgroup(l.Cgroup))
	}
	for _, h := range l.CgroupsV1 {
		errs = append(errs, removeCgroup(h.Dir))
	}
	for _, pod := range l.pods {
		errs = append(errs, pod.close())
	}
	for _, h := range l.hosts {
		errs = append(errs, h.close())
	}
	if l.starter != nil {
		l.starter.stop()
	}
	if l.cgroupFD != nil {
		errs = append(errs, l.cgroupFD.Close())
	}
	if l.nl != nil {
		l.nl.Close()
	}
	if l.ns.IsOpen() {
		errs = append(errs, l.ns.Close())
	}
	errs = append(errs, deleteNetns(l.Name), removeDir(l.Dir))
	return errors.Join(errs...)
}
