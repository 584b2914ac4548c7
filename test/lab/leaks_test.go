package lab_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/firsthop/firsthop/test/lab"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("FH_LAB_DIE") != "" {
		dieWithALab()
	}
	os.Exit(lab.RunMain(m))
}

// dieWithALab leaves a lab behind with a process in it, as kill -9 does to a test.
func dieWithALab() {
	if os.Getenv("FH_LAB_DIE") == "reaped" {
		if err := lab.Reap(); err != nil {
			panic(err)
		}
	}
	l, err := lab.Create(lab.WithCgroupsV1())
	if err != nil {
		panic(err)
	}
	if err := l.Command(context.Background(), "sleep", "1000").Start(); err != nil {
		panic(err)
	}
	os.Stdout.WriteString(l.Name)
	os.Stdout.Close()
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
}

func newMap(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "fh_leak", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mountBPFFS(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestLeaksNamesWhatIsLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before, err := lab.Take()
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t)
	m := newMap(t)
	defer m.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() { <-stop }()

	leaks, err := before.LeaksNow()
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(leaks, "\n")
	for _, want := range []string{l.Dir, l.Netns, l.Cgroup, "mount of bpf on " + l.BPFFS, "fh_leak", "TestLeaksNamesWhatIsLeft"} {
		if !strings.Contains(all, want) {
			t.Errorf("a leak is not named: %s\nnamed are:\n%s", want, all)
		}
	}
}

func TestLeaksSpareObjectsHeldElsewhere(t *testing.T) {
	l := lab.New(t) // its bpffs stands for a foreign one
	before, err := lab.Take()
	if err != nil {
		t.Fatal(err)
	}
	m := newMap(t)
	defer m.Close()
	foreign := filepath.Join(t.TempDir(), "bpffs")
	mountBPFFS(t, foreign)
	if err := m.Pin(filepath.Join(foreign, "map")); err != nil {
		t.Fatal(err)
	}
	leaks, err := before.LeaksNow()
	if err != nil {
		t.Fatal(err)
	}
	if len(leaks) > 0 {
		t.Errorf("a map that is pinned in a foreign bpffs counts as a leak: %v", leaks)
	}
	if err := m.Unpin(); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(filepath.Join(l.BPFFS, "map")); err != nil {
		t.Fatal(err)
	}
	if leaks, err = before.LeaksNow(); err != nil || len(leaks) != 1 {
		t.Errorf("leaks: %v, %v; want only the map that is pinned in a lab of ours", leaks, err)
	}
}

// tracesLike are the paths of a lab with another name than l's.
func tracesLike(l *lab.Lab, name string) []string {
	paths := []string{l.Netns, l.Cgroup, l.Dir}
	for _, h := range l.CgroupsV1 {
		paths = append(paths, h.Dir)
	}
	for i, path := range paths {
		paths[i] = filepath.Join(filepath.Dir(path), name)
	}
	return paths
}

func TestReapRemovesLabsOfAKilledProcess(t *testing.T) {
	alive := lab.New(t, lab.WithCgroupsV1())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FH_LAB_DIE=reaped")
	name, _ := cmd.Output()
	if !strings.HasPrefix(string(name), "fh-") {
		t.Fatalf("the process made no lab: %q", name)
	}
	for _, path := range tracesLike(alive, string(name)) {
		lab.Await(t, path+" is removed", func() bool {
			_, err := os.Lstat(path)
			return os.IsNotExist(err)
		})
	}
	for _, path := range []string{alive.Netns, alive.Cgroup, alive.Dir} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the lab of a living process was removed: %v", err)
		}
	}
}

func TestSweepRemovesLabsOfDeadProcesses(t *testing.T) {
	alive := lab.New(t, lab.WithCgroupsV1())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FH_LAB_DIE=1")
	name, _ := cmd.Output()
	traces := tracesLike(alive, string(name))
	if _, err := os.Lstat(traces[0]); err != nil {
		t.Fatalf("the dead process left nothing behind: %v", err)
	}
	if err := lab.Sweep(); err != nil {
		t.Fatal(err)
	}
	for _, path := range traces {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	for _, path := range []string{alive.Netns, alive.Cgroup, alive.Dir} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the lab of a living process was swept: %v", err)
		}
	}
}

func TestLeaksSpareObjectsPinnedElsewhere(t *testing.T) {
	l := lab.New(t)
	before, err := lab.Take()
	if err != nil {
		t.Fatal(err)
	}
	// The shell's parent has gone: it is no child of this process. It ends with the lab, in whose cgroup it is.
	dir := t.TempDir()
	shell := l.Command(t.Context(), "setsid", "--fork", "unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount -t bpf bpf "$1" && echo $$ && exec sleep 1000`, "sh", dir)
	stdout, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	pid, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Wait(); err != nil {
		t.Fatal(err)
	}
	m := newMap(t)
	defer m.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		leaks, err := before.LeaksNow()
		if err == nil && len(leaks) == 1 {
			break
		}
		if err != nil || time.Now().After(deadline) { // a goroutine of package exec may take a moment to end
			t.Fatalf("leaks: %v, %v; want only the map", leaks, err)
		}
	}
	if err := m.Pin(filepath.Join("/proc", strings.TrimSpace(pid), "root", dir, "map")); err != nil {
		t.Fatal(err)
	}
	if leaks, err := before.LeaksNow(); err != nil || len(leaks) != 0 {
		t.Errorf("leaks: %v, %v; want none", leaks, err)
	}
}
