package mounts

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// containerRow is a container's shape, and the way that is taken from it.
type containerRow struct {
	is       string
	proc     procKind
	ownPID   bool             // without hostPID
	drop     []int            // capabilities it lacks
	onNode   func(*testing.T) // made on the node first
	extra    func(t *testing.T, root string)
	strategy string // the way that is taken
	state    BPFFSState
	says     []string // parts of the reasons and warnings
	ensure   error    // what EnsureBPFFS gives
	ensured  []string // parts of its error
	onHost   int      // bpffs mounts on the node afterwards
	noUnlink bool     // it cannot undo
}

func shareSys(t *testing.T) { mount(t, "", "/sys", "", unix.MS_SHARED, "") }

// hostPath is a volume; if /sys is shared on the host, with Bidirectional
// propagation.
func hostPath(t *testing.T, root string) {
	mount(t, DefaultBPFFS, root+DefaultBPFFS, "", unix.MS_BIND, "")
}

func containerRows() []containerRow {
	return []containerRow{
		{is: "hostPID leads through pid 1", strategy: "pid 1", state: BPFFSAbsent, onHost: 1},
		{is: "hostPID sees what the host has", strategy: "pid 1", state: BPFFSRight, onNode: usual, onHost: 1, noUnlink: true},
		{is: "hostPID sees a tmpfs on the host", strategy: "pid 1", state: BPFFSWrongType, ensure: ErrWrongType,
			onNode: func(t *testing.T) { mount(t, "x", DefaultBPFFS, "tmpfs", 0, "") }},
		{is: "hostPID sees pins hidden on the host", strategy: "pid 1", state: BPFFSStacked, ensure: ErrStacked, onHost: 2,
			onNode: func(t *testing.T) { usual(t); must(t, os.Mkdir(DefaultBPFFS+"/firsthop", 0o700)); usual(t) }},
		{is: "an absolute link on the host stays on the host", strategy: "pid 1", state: BPFFSRight, noUnlink: true,
			onNode: func(t *testing.T) {
				must(t, os.MkdirAll("/run/elsewhere", 0o755))
				mount(t, "bpf", "/run/elsewhere", "bpf", usualFlags, "mode=0700")
				mount(t, "x", "/sys/fs", "tmpfs", 0, "")
				must(t, os.Symlink("/run/elsewhere", DefaultBPFFS))
			}, says: []string{"symbolic link to /run/elsewhere"}},
		{is: "the host's proc at /host/proc", proc: freshProcAndHostProc, ownPID: true, strategy: "host proc", state: BPFFSAbsent, onHost: 1},
		{is: "no way but a bpffs given by hostPath", proc: freshProc, ownPID: true, strategy: "own directory", state: BPFFSRight, onNode: usual, onHost: 1, noUnlink: true,
			extra: hostPath, says: []string{"container's own first process", "/dev/termination-log", "cannot be verified"}},
		{is: "a bpffs of ours given by hostPath is not unmounted in the container", proc: freshProc, ownPID: true, strategy: "own directory", state: BPFFSRight, onHost: 1, noUnlink: true,
			onNode: func(t *testing.T) { mount(t, "firsthop-0", DefaultBPFFS, "bpf", usualFlags, "mode=0700") },
			extra:  hostPath},
		{is: "no way and no bpffs", proc: freshProc, ownPID: true, state: BPFFSUnreachable, ensure: ErrNoHost,
			says: []string{"container's own first process", "hostPID: true", "a mount there would stay in this container"}},
		{is: "no way but propagation", proc: freshProc, ownPID: true, strategy: "own directory", state: BPFFSAbsent, onHost: 1, noUnlink: true,
			onNode: shareSys, extra: hostPath, says: []string{"is unknown"}},
		{is: "setns refused for lack of CAP_SYS_CHROOT", drop: []int{unix.CAP_SYS_CHROOT}, strategy: "pid 1", state: BPFFSAbsent,
			ensure: ErrRefused, ensured: []string{"setns /proc/1/ns/mnt", "lacks CAP_SYS_CHROOT", "mount -t bpf"}},
		{is: "setns refused, but propagation", drop: []int{unix.CAP_SYS_CHROOT}, strategy: "pid 1", state: BPFFSAbsent, onHost: 1, noUnlink: true,
			onNode: shareSys, extra: hostPath},
		{is: "pid 1 may not be looked at", drop: []int{unix.CAP_SYS_PTRACE}, state: BPFFSUnreachable, ensure: ErrNoHost,
			says: []string{"lacks CAP_SYS_PTRACE"}},
		{is: "a given root that is pid 1's", strategy: "pid 1", state: BPFFSAbsent, onHost: 1},
		{is: "a given root that is the host's", proc: hostProc, strategy: "pid 1", state: BPFFSAbsent, onHost: 1,
			extra: func(t *testing.T, root string) { bind(t, "/", root+"/host-root") }},
	}
}

func containerRowNamed(t *testing.T, name string) containerRow {
	for _, r := range containerRows() {
		if r.is == name {
			return r
		}
	}
	t.Fatalf("no row %q", name)
	return containerRow{}
}

func TestHostOfContainers(t *testing.T) {
	for _, row := range containerRows() {
		t.Run(row.is, func(t *testing.T) { runStage(t, "node", spec{clone: node, arg: row.is}) })
	}
}

// stageNode is the host of one row.
func stageNode(t *testing.T) {
	startNode(t)
	row := containerRowNamed(t, stageArg())
	newRootFS(t)
	if row.onNode != nil {
		row.onNode(t)
	}
	before := countType(t, "/proc/self", "bpf", DefaultBPFFS)
	s := spec{clone: unix.CLONE_NEWNS, drop: row.drop, arg: row.is}
	if row.ownPID {
		s.clone |= unix.CLONE_NEWPID
	}
	runStage(t, "container", s)
	after := countType(t, "/proc/self", "bpf", DefaultBPFFS)
	if row.noUnlink {
		if after != row.onHost {
			t.Errorf("%d bpffs mounts on the node, want %d", after, row.onHost)
		}
	} else if after != before {
		t.Errorf("%d bpffs mounts on the node, there were %d", after, before)
	}
}

func stageContainer(t *testing.T) {
	row := containerRowNamed(t, stageArg())
	startContainer(t, "/run/containerd/fh/rootfs", row.proc, func(root string) {
		if row.extra != nil {
			row.extra(t, root)
		}
	})
	identity := "" // of the mount that we make, if we do
	c := Config{Record: func(kind instance.Kind, _, former string) error {
		if kind == instance.KindMount {
			identity = former
		}
		return nil
	}}
	switch row.is {
	case "a given root that is the host's":
		c.Root = "/host-root"
	case "a given root that is pid 1's":
		c.Root = "/proc/1/root"
	}
	before := tableText(t)
	b, err := FindBPFFS(c)
	must(t, err)
	checkFound(t, row, c, b)
	if after := tableText(t); after != before {
		t.Error("looking changed the mounts")
	}
	b, err = EnsureBPFFS(t.Context(), c)
	if !errors.Is(err, row.ensure) || (err == nil) != (row.ensure == nil) {
		t.Fatalf("ensure: %v, want %v", err, row.ensure)
	}
	for _, part := range row.ensured {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("ensure does not say %q: %v", part, err)
		}
	}
	if err != nil {
		return
	}
	if b.State != BPFFSRight {
		t.Fatalf("ensured: %s", b.State)
	}
	// It is usable by this process, through the path that it was given.
	must(t, os.Mkdir(b.Path+"/fh-try", 0o700))
	must(t, os.Remove(b.Path+"/fh-try"))
	if row.proc == hostProc && row.onHost > 0 {
		if n := countType(t, "/proc/1", "bpf", DefaultBPFFS); n != row.onHost {
			t.Errorf("%d bpffs mounts on the host, want %d", n, row.onHost)
		}
	}
	if strings.HasPrefix(row.is, "a bpffs of ours") {
		if err := UnmountBPFFS(t.Context(), c, ""); !errors.Is(err, ErrNoHost) {
			t.Errorf("unmount: %v", err)
		}
	}
	if identity != "" && !row.noUnlink {
		must(t, UnmountBPFFS(t.Context(), c, identity))
	}
}

func checkFound(t *testing.T, row containerRow, c Config, b BPFFS) {
	t.Helper()
	if b.State != row.state {
		t.Errorf("state %s, want %s (%v)", b.State, row.state, b.Err())
	}
	h, err := FindHost(c)
	taken := map[string]string{"/proc/1": "pid 1", "/host/proc/1": "host proc"}[h.entry]
	if errors.Is(err, ErrNoHost) && b.Err() == nil || err != nil && b.State == BPFFSAbsent {
		taken = "own directory"
	}
	if taken != row.strategy {
		t.Errorf("took %q, want %q: %+v, %v", taken, row.strategy, h, err)
	}
	said := slices.Concat(b.Warnings, b.Notes, []string{fmt.Sprint(err), fmt.Sprint(b.Err())})
	for _, part := range row.says {
		if !anyContains(said, part) {
			t.Errorf("nothing says %q in %q", part, said)
		}
	}
}

// A pod with shareProcessNamespace: pid 1 is the pause process, in a mount
// namespace that is neither ours nor the host's.
func TestHostIsNotThePause(t *testing.T) { runStage(t, "pause", spec{clone: node}) }

func stagePause(t *testing.T) {
	if stageArg() == "" {
		startNode(t)
		runStage(t, "pause", spec{clone: unix.CLONE_NEWNS, arg: "container"})
		return
	}
	// The container's root is mounted here only, and not where pid 1 is.
	startContainer(t, newRootFS(t), hostProc, nil)
	h, err := FindHost(Config{})
	if !errors.Is(err, ErrNoHost) || !strings.Contains(err.Error(), "pause process") {
		t.Errorf("found %+v, %v", h, err)
	}
	// Unless the user says so.
	identity := ""
	c := Config{Root: "/proc/1/root", Record: func(_ instance.Kind, _, former string) error {
		identity = former
		return nil
	}}
	b, err := EnsureBPFFS(t.Context(), c)
	if err != nil || b.Path != "/proc/1/root"+DefaultBPFFS || countType(t, "/proc/1", "bpf", DefaultBPFFS) != 1 {
		t.Errorf("given root: %+v, %v", b, err)
	}
	must(t, UnmountBPFFS(t.Context(), c, identity))
	if countType(t, "/proc/1", "bpf", DefaultBPFFS) != 0 {
		t.Error("unmount left it")
	}
}

// The doc comment of the package rests on this.
func TestMountByPathIsRefused(t *testing.T) { runStage(t, "move_mount", spec{clone: node}) }

func stageMoveMount(t *testing.T) {
	if stageArg() == "container" {
		mount(t, "", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		target := "/proc/1/root" + DefaultBPFFS
		if err := unix.Mount("x", target, "bpf", 0, ""); err != unix.EINVAL {
			t.Errorf("mount: %v", err)
		}
		fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
		if err == unix.ENOSYS {
			return
		}
		must(t, err)
		must(t, unix.FsconfigCreate(fs))
		fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
		must(t, err)
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != unix.EINVAL {
			t.Errorf("move_mount: %v", err)
		}
		return
	}
	startNode(t)
	runStage(t, "move_mount", spec{clone: unix.CLONE_NEWNS, arg: "container"})
}

// Pid 1 has more capabilities than we, so its namespaces are not shown, but its
// mount table is.
func TestHostByMountTable(t *testing.T) {
	lab.NeedsLinux(t, 5, 11, "Debian's 5.10 shows pid 1's namespaces to who lacks CAP_SYS_PTRACE too")
	runStage(t, "table only", spec{clone: node})
}

func stageTableOnly(t *testing.T) {
	startNode(t)
	usual(t)
	runStage(t, "table only child", spec{drop: []int{unix.CAP_SYS_PTRACE}, arg: "same"})
	runStage(t, "table only child", spec{drop: []int{unix.CAP_SYS_PTRACE}, clone: unix.CLONE_NEWNS, arg: "other"})
}

func stageTableOnlyChild(t *testing.T) {
	if _, err := os.Readlink("/proc/1/ns/mnt"); err == nil {
		t.Fatal("pid 1's namespaces are to be seen")
	}
	h, err := FindHost(Config{})
	if stageArg() == "other" {
		if !errors.Is(err, ErrNoHost) {
			t.Errorf("found %+v, %v", h, err)
		}
		return
	}
	if err != nil || h.Prefix != "" || !h.own || h.entry != "" {
		t.Errorf("found %+v, %v", h, err)
	}
	b, err := FindBPFFS(Config{})
	if err != nil || b.State != BPFFSRight {
		t.Errorf("%s, %v", b.State, err)
	}
}

// Rule 2 of FindHost: the number of the first pid namespace settles it.
func TestJudgeInitOfTheMachine(t *testing.T) {
	for _, same := range []bool{true, false} {
		if err := judgeInit("/none", namespaces{pid: initPIDNamespace}, same); err != nil {
			t.Errorf("same %v: %v", same, err)
		}
	}
	// Of any other nothing is known if its mount table cannot be read.
	if err := judgeInit("/none", namespaces{pid: "pid:[1]"}, false); err == nil {
		t.Error("it is the node's")
	}
}

func BenchmarkFindHost(b *testing.B) {
	for b.Loop() {
		if _, err := FindHost(Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestInPIDNamespaceOf(t *testing.T) {
	for status, want := range map[string]bool{"Pid:\t5\nNSpid:\t5\n": true, "NSpid:\t5\t1\n": false, "": false} {
		if got := inPIDNamespaceOf(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}
