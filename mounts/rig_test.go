package mounts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/test/lab"
)

// The tests make each shape of host and container for real: a stage is this
// test binary run again in new namespaces, where it does its part and exits. The
// kernel takes the namespaces and all their mounts away with it.
//
// A "node" is a process that is pid 1 of a pid namespace and has a mount
// namespace of its own, as in kind; a "container" is a child of a node.

const (
	stageEnv = "FH_MOUNTS_STAGE"
	argEnv   = "FH_MOUNTS_ARG"
)

// spec says in which namespaces a stage runs.
type spec struct {
	clone  uintptr // CLONE_* for the new process
	nest   uintptr // unshared after it has moved to its cgroup
	cgroup string  // directory to start in
	drop   []int   // capabilities that it does not have
	arg    string
}

const node = unix.CLONE_NEWNS | unix.CLONE_NEWPID

// TestStage is the entry of the stages. Without one it has nothing to do.
func TestStage(t *testing.T) {
	name := os.Getenv(stageEnv)
	if name == "" {
		return
	}
	f := stageNamed(name)
	if f == nil {
		t.Fatalf("no stage %q", name)
	}
	f(t)
	if !t.Failed() {
		fmt.Println("stage-complete")
	}
}

func stageArg() string { return os.Getenv(argEnv) }

// runStage runs a stage to its end, and fails the test if it fails.
func runStage(t *testing.T, name string, s spec) {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestStage$", "-test.v")
	// Race builds otherwise sleep a second at each exit.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", stageEnv+"="+name, argEnv+"="+s.arg)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: s.clone, Unshareflags: s.nest, Pdeathsig: syscall.SIGKILL}
	var dir *os.File
	if s.cgroup != "" {
		var err error
		dir, err = os.Open(s.cgroup)
		must(t, err)
		defer dir.Close()
	}
	err := ns.Do(func() error {
		if dir != nil {
			lab.IntoCgroup(cmd, dir, s.drop...)
			return cmd.Run()
		}
		// The child inherits this thread's bounding set.
		for _, c := range s.drop {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return err
			}
		}
		return cmd.Run()
	})
	if err != nil || !strings.Contains(out.String(), "stage-complete") {
		t.Errorf("stage %s: %v\n%s", name, err, out.String())
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mount(t testing.TB, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s (%s) at %s: %v", source, fstype, target, err)
	}
}

func bind(t testing.TB, from, to string) {
	t.Helper()
	must(t, os.MkdirAll(to, 0o755))
	mount(t, from, to, "", unix.MS_BIND, "")
}

// startNode makes the mounts of a new node private and gives it a /proc.
func startNode(t *testing.T) {
	t.Helper()
	if unix.Getpid() != 1 {
		t.Fatalf("node stage has pid %d", unix.Getpid())
	}
	mount(t, "", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	mount(t, "proc", "/proc", "proc", 0, "")
	must(t, os.Chdir("/"))
}

// keepsSource tells whether the kernel keeps the source of a bpffs: see devicePrefix.
func keepsSource(t *testing.T) bool {
	t.Helper()
	const source = "firsthop-probe"
	mount(t, source, DefaultBPFFS, "bpf", usualFlags, "mode=0700")
	table, err := ownView().mounts(mountPointIs(DefaultBPFFS))
	must(t, err)
	must(t, unix.Unmount(DefaultBPFFS, 0))
	for _, m := range table {
		if m.Source == source {
			return true
		}
	}
	return false
}

// newRootFS is a container's root file system, mounted on the node as a
// container runtime does it.
func newRootFS(t *testing.T) string {
	t.Helper()
	mount(t, "fh-run", "/run", "tmpfs", 0, "")
	dir := "/run/containerd/fh/rootfs"
	must(t, os.MkdirAll(dir, 0o755))
	mount(t, "overlay", dir, "tmpfs", 0, "")
	for _, d := range []string{"proc", "sys", "dev", "host/proc", "old", "run", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	return dir
}

// procKind is which /proc a container has.
type procKind int

const (
	hostProc procKind = iota // hostPID
	freshProc
	freshProcAndHostProc // the host's at /host/proc
)

// startContainer makes a container's view out of the node's: its own root, a
// /proc and /sys, and the marks of a kubelet. extra mounts more below the root
// while the node's files can still be reached.
func startContainer(t *testing.T, root string, p procKind, extra func(root string)) {
	t.Helper()
	switch p {
	case hostProc:
		bind(t, "/proc", root+"/proc")
	case freshProcAndHostProc:
		bind(t, "/proc", root+"/host/proc")
		fallthrough
	case freshProc:
		mount(t, "proc", root+"/proc", "proc", 0, "")
	}
	mount(t, "sysfs", root+"/sys", "sysfs", 0, "")
	if extra != nil {
		extra(root)
	}
	must(t, os.WriteFile(root+"/dev/termination-log", nil, 0o644))
	mount(t, root+"/dev/termination-log", root+"/dev/termination-log", "", unix.MS_BIND, "")
	mount(t, root, root, "", unix.MS_BIND|unix.MS_REC, "")
	must(t, os.Chdir(root))
	must(t, unix.PivotRoot(".", "old"))
	must(t, os.Chdir("/"))
	// Slave, or what is taken off here would go from the node as well.
	mount(t, "", "/old", "", unix.MS_REC|unix.MS_SLAVE, "")
	must(t, unix.Unmount("/old", unix.MNT_DETACH))
}

// inOwnNamespace runs fn in a private mount namespace of its own thread.
func inOwnNamespace(t testing.TB, fn func()) {
	t.Helper()
	needRoot(t)
	must(t, ns.Do(func() error {
		err := ns.UnshareMounts()
		if err == nil {
			fn()
		}
		return err
	}))
}

// tableText is the own mount table, for comparisons. Copies of what other
// programs of this machine have in /tmp and /run/netns go with the originals.
func tableText(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	must(t, err)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, " /tmp/") && !strings.Contains(line, " /run/netns") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func countType(t *testing.T, process, fstype, point string) int {
	t.Helper()
	table, err := view{table: tableOf(process)}.mounts(typeIs(fstype))
	must(t, err)
	n := 0
	for _, m := range table {
		if m.Point == point {
			n++
		}
	}
	return n
}

func anyContains(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// stageNamed finds a stage. (A function, not a map: the stages refer to it.)
func stageNamed(name string) func(*testing.T) {
	switch name {
	case "bpffs states":
		return stageBPFFSStates
	case "bpffs lifecycle":
		return stageBPFFSLifecycle
	case "bpffs race":
		return stageBPFFSRace
	case "bpffs ensure":
		return stageBPFFSEnsure
	case "bpffs settle":
		return stageBPFFSSettle
	case "table only":
		return stageTableOnly
	case "table only child":
		return stageTableOnlyChild
	case "node":
		return stageNode
	case "container":
		return stageContainer
	case "pause":
		return stagePause
	case "move_mount refused":
		return stageMoveMountRefused
	case "handle refused":
		return stageHandleRefused
	case "move_mount":
		return stageMoveMount
	case "cgroup node":
		return stageCgroupNode
	case "cgroup container":
		return stageCgroupContainer
	case "cgroup unsure":
		return stageCgroupUnsure
	case "cgroup top":
		return stageCgroupTop
	}
	return nil
}
