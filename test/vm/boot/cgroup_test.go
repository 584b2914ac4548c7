package boot

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
	"golang.org/x/sys/unix"
)

// mount is one of the machine's.
type mount struct{ at, root, fstype, options string }

// mounted lists the mounts of a type, or all.
func mounted(t *testing.T, fstype string) (mounts []mount) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if fstype == "" || right[0] == fstype {
			mounts = append(mounts, mount{left[4], left[3], right[0], left[5] + "," + right[2]})
		}
	}
	return mounts
}

// cgroup2Root opens the root of the hierarchy of version 2, whether or not it is mounted.
func cgroup2Root(t *testing.T) *os.File {
	t.Helper()
	at := ""
	for _, m := range mounted(t, "cgroup2") {
		if m.root == "/" {
			at = m.at
		}
	}
	if at == "" {
		var err error
		if at, err = os.MkdirTemp("/run", "vm-cgroup-"); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(at)
		if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
			t.Fatal("mount cgroup2:", err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
	}
	dir, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestCgroup2 wants the hierarchy of version 2 to be mounted where the stage says, and nowhere else.
func TestCgroup2(t *testing.T) {
	needsSystem(t)
	at := []string{}
	for _, m := range mounted(t, "cgroup2") {
		at = append(at, m.at)
	}
	want := strings.Fields(os.Getenv("FIRSTHOP_VM_CGROUP2"))
	if !slices.Equal(at, want) {
		t.Fatalf("cgroup2 is mounted at %q, want %q", at, want)
	}
	if v1 := mounted(t, "cgroup"); len(v1) == 0 {
		t.Error("there is no hierarchy of version 1")
	}
}

// TestServesCgroup2 wants the programs at the root of what TestCgroup2 saw.
func TestServesCgroup2(t *testing.T) {
	needsSystem(t)
	at := os.Getenv("FIRSTHOP_VM_CGROUP2")
	if status := firsthop(t, "status"); !strings.Contains(status, "cgroup  "+at+" (id 1)") {
		t.Errorf("status does not name %s with the id of a root", at)
	}
	if len(attached(t)) == 0 {
		t.Errorf("there are no programs at %s", at)
	}
}

// TestWithClassID: from the first class of traffic on, kernels before 5.14 take every new socket for one of the root of
// version 2, so that programs elsewhere are passed over. The boot unit came after that class.
func TestWithClassID(t *testing.T) {
	needsSystem(t)
	const dir = "/sys/fs/cgroup/net_cls/vm"
	class, err := os.ReadFile(dir + "/net_cls.classid")
	if err != nil || strings.TrimSpace(string(class)) != "1048577" {
		t.Fatalf("the class of traffic is %q, %v", class, err)
	}
	if saw := kube.Visit(vip); saw != greeting {
		t.Errorf("beside a class of traffic the Service IP says %q", saw)
	}
	// So a program that is to tell this process's network namespace goes to the root too (natinit.Cookies).
	self := firsthop(t, "nat", "lookup", vip, "--pid", strconv.Itoa(os.Getpid()), "-o", "json")
	if !strings.Contains(self, `"host_netns": true`) {
		t.Errorf("beside a class of traffic this process's network namespace is not known as the host's: %s", self)
	}
	// One more time by who is in that class himself.
	if err := os.Remove(kubeletSaw); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs && exec \"$0\" stand-in-kubelet", os.Args[0])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("connect in a class of traffic: %v: %s", err, out)
	}
	wantKubelet(t, greeted)
}
