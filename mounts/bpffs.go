package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// BPFFSState says how the BPF file system was found; "": it was not looked at.
type BPFFSState string

// The states. Only Right, WrongMode and, unless it hides our pins, Stacked are
// usable; Absent is what EnsureBPFFS repairs.
const (
	BPFFSUnreachable BPFFSState = "unreachable" // no way to the host
	BPFFSAbsent      BPFFSState = "absent"      // a directory with nothing mounted on it
	BPFFSRight       BPFFSState = "right"
	BPFFSWrongMode   BPFFSState = "wrong mode"    // not 0700 of root: others may get at the pins
	BPFFSStacked     BPFFSState = "mounted twice" // a second bpffs lies over the first
	BPFFSReadOnly    BPFFSState = "read-only"     // no pin can be made
	BPFFSWrongType   BPFFSState = "wrong type"    // something else is mounted there
	BPFFSNoDirectory BPFFSState = "no directory"  // nothing to mount on
	BPFFSNotEmpty    BPFFSState = "not empty"     // a given directory with files, which a mount would hide
)

// Layer is one of several mounts at the same mount point.
type Layer struct {
	Mount
	// Entries are the names in its root directory, at most 32; none if we could
	// not look into it.
	Entries []string
}

// BPFFS is a BPF file system, or the place where one should be.
type BPFFS struct {
	// Path leads this process to it, for example /proc/1/root/sys/fs/bpf.
	Path string
	// HostPath is its path in the mount namespace that it is in.
	HostPath string
	State    BPFFSState
	// Mount is what HostPath is on. Zero when that is not to be seen.
	Mount Mount
	// Stack has all mounts at HostPath, the topmost first, if there are
	// several.
	Stack []Layer
	// Mode has the permission bits and the sticky bit, which the root of a
	// bpffs always has; UID is the owner.
	Mode uint32
	UID  uint32
	// Actions are what EnsureBPFFS would do, or has done.
	Actions []string
	// Warnings are things that the administrator should fix; Notes are only to know.
	Warnings []string
	Notes    []string

	problem error
}

// Err says why it cannot be used, nil if it can. It wraps one of the sentinel
// errors; for a BPF file system that EnsureBPFFS can mount that is ErrAbsent.
func (b *BPFFS) Err() error { return b.problem }

func (b *BPFFS) is(s BPFFSState, cause error, format string, args ...any) {
	b.State, b.problem = s, nil
	if cause != nil {
		b.problem = fmt.Errorf("bpffs at %s: %w: %s", b.HostPath, cause, fmt.Sprintf(format, args...))
	}
}

func (b *BPFFS) warn(format string, args ...any) {
	b.Warnings = append(b.Warnings, fmt.Sprintf(format, args...))
}

func (b *BPFFS) note(format string, args ...any) {
	b.Notes = append(b.Notes, fmt.Sprintf(format, args...))
}

// FindBPFFS looks at the host's BPF file system and changes nothing. The state
// of what it finds is in the result, see [BPFFS.Err]; the error is only for
// what kept it from looking.
func FindBPFFS(c Config) (BPFFS, error) {
	b, _, err := findBPFFS(c)
	return b, err
}

func findBPFFS(c Config) (BPFFS, Host, error) {
	if c.Explicit {
		h := Host{own: true}
		b, err := lookBPFFS(&h, c)
		return b, h, err
	}
	h, err := FindHost(c)
	if errors.Is(err, ErrNoHost) {
		return findGivenBPFFS(c, err)
	}
	if err != nil {
		return BPFFS{HostPath: c.bpffsPath()}, h, err
	}
	b, err := lookBPFFS(&h, c)
	if err == nil && h.onlyFiles && b.State == BPFFSAbsent && !b.Mount.Shared {
		b.is(BPFFSUnreachable, ErrNoHost, "%s shows the host's files, but not its processes, so a mount there would stay in this container, and end with it; "+
			"mount the host's /proc at %s/proc or at %s, set hostPID: true, or mount it on the host (mount -t bpf bpf %s)", h.Prefix, h.Prefix, DefaultHostProc, b.HostPath)
		b.Actions = nil
	}
	return b, h, err
}

// findGivenBPFFS looks at what the pod has at the path in its own mount
// namespace, the last way when pid 1 cannot be reached: a hostPath volume of the
// directory, and if that is mounted with Bidirectional propagation, what we
// mount on it.
func findGivenBPFFS(c Config, noHost error) (BPFFS, Host, error) {
	h := Host{own: true, outOfReach: true}
	b, err := lookBPFFS(&h, c)
	if err != nil {
		return b, h, err
	}
	switch {
	case b.State == BPFFSAbsent && b.Mount.Shared: // what is mounted on it appears outside of this mount namespace
		b.warn("%s: whether the host sees a mount there is unknown, for its pid 1 is out of reach; set hostPID: true", b.HostPath)
	case b.Mount.Type != "bpf":
		b.is(BPFFSUnreachable, noHost, "and in this container's %[1]s: %[2]s, and a mount there would stay in this container; mount it on the host (mount -t bpf bpf %[1]s), set hostPID: true, or mount the host's /proc at %[3]s",
			b.HostPath, b.State, DefaultHostProc)
		b.Actions = nil
	default: // given by the pod's volumes
		b.warn("%s is taken for the host's because it is there; that cannot be verified, for the host's pid 1 is out of reach", b.HostPath)
	}
	return b, h, nil
}

// lookBPFFS judges what is at the path, seen from h.
func lookBPFFS(h *Host, c Config) (BPFFS, error) {
	b, err := lookAt(h.view(), c)
	if err != nil || len(b.Stack) < 2 {
		return b, err
	}
	lookIntoStack(h, &b)
	return b, nil
}

// lookAt judges what is at the path in a view.
func lookAt(v view, c Config) (BPFFS, error) {
	b := BPFFS{HostPath: c.bpffsPath()}
	b.Path = v.open(b.HostPath)
	if !strings.HasPrefix(b.HostPath, "/") {
		return b, fmt.Errorf("bpffs path %q is not absolute", b.HostPath)
	}
	real, err := v.resolve(b.HostPath)
	if errors.Is(err, fs.ErrNotExist) {
		b.missing(c, real)
		return b, nil
	}
	if err != nil {
		return b, fmt.Errorf("look at bpffs path: %w", err)
	}
	if strings.TrimRight(b.HostPath, "/") != real {
		b.note("%s is a symbolic link to %s", b.HostPath, real)
		b.HostPath, b.Path = real, v.open(real)
	}
	// Again if a mount was removed between opening it and reading the table.
	// Not forever: a chrooted process's table lacks the mount of its root.
	for try := 0; ; try++ {
		found := b
		known, err := found.open(v, c)
		if known || err != nil || try == 2 {
			return found, err
		}
	}
}

// open opens the directory and judges it. It reports whether the mount that it
// is on is known.
func (b *BPFFS) open(v view, c Config) (known bool, err error) {
	fd, err := v.openDir(b.HostPath)
	if errors.Is(err, unix.ENOTDIR) {
		b.is(BPFFSNoDirectory, ErrNoDirectory, "it is a file")
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	err = b.judge(v, c, fd)
	return b.Mount.ID != 0, err
}

// missing handles a path that is not there.
func (b *BPFFS) missing(c Config, at string) {
	if c.Explicit {
		b.is(BPFFSAbsent, ErrAbsent, "the directory does not exist")
		b.Actions = []string{"make the directory " + b.HostPath, "mount bpffs at " + b.HostPath}
		return
	}
	b.is(BPFFSNoDirectory, ErrNoDirectory, "%s does not exist: the kernel is built without CONFIG_BPF_SYSCALL, or sysfs is not mounted at /sys", at)
}

// judge looks at an open directory.
func (b *BPFFS) judge(v view, c Config, fd int) error {
	var fst unix.Statfs_t
	if err := unix.Fstatfs(fd, &fst); err != nil {
		return fmt.Errorf("statfs %s: %w", b.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", b.Path, err)
	}
	b.Mode, b.UID = st.Mode&0o7777, st.Uid
	point := v.inTable + b.HostPath
	isAt, isBPF := mountPointIs(point), typeIs("bpf")
	id := hostfs.MountID(fd)
	own := []byte(fmt.Sprintf("%d ", id))
	table, err := v.mounts(func(line []byte) bool {
		return isAt(line) || isBPF(line) || len(line) > len(own) && string(line[:len(own)]) == string(own)
	})
	if err != nil {
		return err
	}
	b.Mount, _ = byID(table, id)
	stack, hidden := stackAt(table, point, id)
	if id == 0 && len(stack) > 0 {
		b.Mount = stack[0]
	}
	for _, m := range hidden {
		if m.Type == "bpf" {
			b.note("another bpffs (mount %d) at %s is hidden by a mount over one of its parent directories", m.ID, point)
		}
	}
	if len(stack) > 1 {
		for _, m := range stack {
			b.Stack = append(b.Stack, Layer{Mount: m})
		}
	}
	if uint32(fst.Type) != unix.BPF_FS_MAGIC {
		return b.judgeOther(c, stack)
	}
	b.judgeBPF(&fst, point)
	return nil
}

// judgeOther handles a path with no BPF file system.
func (b *BPFFS) judgeOther(c Config, stack []Mount) error {
	// A pod's hostPath volume of the bare directory is a bind mount of sysfs.
	if len(stack) > 0 && stack[0].Type != "sysfs" {
		under := ""
		for _, m := range stack[1:] {
			if m.Type == "bpf" {
				under = ", and hides a bpffs"
			}
		}
		b.is(BPFFSWrongType, ErrWrongType, "a %s (source %s) is mounted there%s; unmount it (umount %s), or give another directory", stack[0].Type, stack[0].Source, under, b.HostPath)
		return nil
	}
	if c.Explicit {
		names, err := entries(b.Path, 3)
		if err != nil {
			return fmt.Errorf("look into bpffs directory: %w", err)
		}
		if len(names) > 0 {
			b.is(BPFFSNotEmpty, ErrNotEmpty, "a mount would hide %s in it; give an empty directory", strings.Join(names, ", "))
			return nil
		}
	}
	b.is(BPFFSAbsent, ErrAbsent, "nothing is mounted there")
	b.Actions = []string{"mount bpffs at " + b.HostPath}
	return nil
}

// judgeBPF handles a path on a BPF file system.
func (b *BPFFS) judgeBPF(fst *unix.Statfs_t, point string) {
	b.is(BPFFSRight, nil, "")
	if b.Mount.Point != "" && b.Mount.Point != point {
		b.note("%s is a directory of the bpffs mounted at %s", b.HostPath, b.Mount.Point)
	}
	if b.Mount.Root != "" && b.Mount.Root != "/" {
		b.note("only the directory %s of the bpffs is mounted at %s", b.Mount.Root, b.Mount.Point)
	}
	for _, f := range []struct {
		flag int64
		name string
	}{{unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}} {
		if int64(fst.Flags)&f.flag == 0 {
			b.note("mounted without %s", f.name)
		}
	}
	if b.Mode&0o77 != 0 || b.UID != 0 {
		b.is(BPFFSWrongMode, nil, "")
		b.warn("bpffs at %s has mode %04o and owner %d, so others than root may get at its pins; fix it with: chown root %s && chmod 0700 %s",
			b.HostPath, b.Mode, b.UID, b.HostPath, b.HostPath)
	}
	if len(b.Stack) > 1 && b.Stack[1].Type == "bpf" {
		b.is(BPFFSStacked, nil, "")
	}
	if int64(fst.Flags)&unix.ST_RDONLY != 0 {
		how := "remount,bind,rw"
		if slices.Contains(strings.Split(b.Mount.Super, ","), "ro") {
			how = "remount,rw"
		}
		b.is(BPFFSReadOnly, ErrReadOnly, "no pin can be made; fix it with: mount -o %s %s", how, b.HostPath)
	}
}
