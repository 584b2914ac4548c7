package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

const (
	filesDir = "/run/container-test" // what the path puts there: deploy and the image
	workDir  = "/var/lib/container-test"
	podDir   = "/var/lib/kubelet/pods/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	bpffs    = "/sys/fs/bpf"
	unit     = "firsthop-init.service"
)

// node is the machine, and what a kubelet would have prepared on it.
type node struct {
	*testing.T
	image    imageConfig
	tokenDir string // of the pod's identity, if it has one
}

// newNode is a node on which nothing stays after the test.
func newNode(t *testing.T) *node {
	t.Helper()
	n := newNodeThatStays(t)
	t.Cleanup(n.forget)
	return n
}

// newNodeThatStays leaves out a test that is not for this machine.
func newNodeThatStays(t *testing.T) *node {
	t.Helper()
	if _, err := os.Stat(filepath.Join(wire.SystemDir, wire.ManifestPath)); err != nil {
		t.Skip("needs a virtual machine: make test-boot BOOT=container")
	}
	n := &node{T: t}
	for _, dir := range []string{podDir + "/containers/init", podDir + "/containers/firsthop", workDir} {
		n.must(os.MkdirAll(dir, 0o755))
	}
	for _, file := range []string{podDir + "/etc-hosts", podDir + "/containers/init/0", podDir + "/containers/firsthop/0"} {
		n.must(os.WriteFile(file, nil, 0o644))
	}
	n.must(os.RemoveAll(n.rootfs()))
	n.image = unpack(t, filesDir+"/firsthop-oci.tar", n.rootfs())
	return n
}

func (n *node) rootfs() string { return workDir + "/rootfs" }

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

// on is the node for a subtest.
func (n *node) on(t *testing.T) *node {
	copied := *n
	copied.T = t
	return &copied
}

// command runs a program and returns what it printed and its exit code.
func (n *node) command(name string, args ...string) (string, int) {
	n.Helper()
	out, err := exec.Command(name, args...).CombinedOutput() // also while a test cleans up
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.Fatalf("%s: %v", name, err)
	}
	if exit != nil {
		return strings.TrimSpace(string(out)), exit.ExitCode()
	}
	return strings.TrimSpace(string(out)), 0
}

// done runs a program that must succeed.
func (n *node) done(name string, args ...string) string {
	n.Helper()
	out, code := n.command(name, args...)
	if code != 0 {
		n.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}

func (n *node) firsthop(args ...string) string {
	n.Helper()
	return n.done(filepath.Join(wire.SystemDir, "firsthop"), args...)
}

// forget takes away what the init container made on the host, from the host.
func (n *node) forget() {
	cmd := exec.Command(filepath.Join(wire.SystemDir, "firsthop"), "uninstall", "--force")
	if out, err := cmd.CombinedOutput(); err != nil {
		n.Errorf("uninstall: %v\n%s", err, out)
	}
}

// outcome is how a container ended.
type outcome struct {
	*node
	out  string
	code int
	peak string // memory that it used at most, where the kernel tells
}

// podCgroup is that of the pod, for the containers in it.
const podCgroup = "/sys/fs/cgroup/container-test"

// start runs the init container of a pod to its end.
func (n *node) start(p pod) outcome {
	n.Helper()
	return n.startAs(p, p.InitContainers[0], n.image, n.rootfs(), "")
}

func (n *node) startAs(p pod, c container, image imageConfig, rootfs, netns string) outcome {
	n.Helper()
	name, bundle := n.bundle(p, c, image, rootfs, netns)
	defer os.RemoveAll(bundle)
	began := time.Now()
	out, code := n.command("runc", "--root", runcRoot, "run", "--bundle", bundle, name)
	o := outcome{n, out, code, "unknown"}
	if data, err := os.ReadFile(podCgroup + "/memory.peak"); err == nil {
		o.peak = strings.TrimSpace(string(data))
	}
	n.Logf("container %s: exit code %d after %v, memory.peak %s\n%s", c.Name, code, time.Since(began).Round(time.Millisecond), o.peak, out)
	_ = unix.Rmdir(podCgroup) // with it its memory.peak
	return o
}

const runcRoot = "/run/container-test-runc"

// bundle writes what runc runs, and returns its name and where it is.
func (n *node) bundle(p pod, c container, image imageConfig, rootfs, netns string) (name, bundle string) {
	n.Helper()
	name = fmt.Sprintf("%s-%d", c.Name, time.Now().UnixNano())
	bundle = filepath.Join(workDir, name)
	n.must(os.MkdirAll(bundle, 0o755))
	config, err := json.Marshal(runtimeSpec(n.T, p, c, image, where{
		rootfs: rootfs, cgroup: "/container-test/" + name, netns: netns, podDir: podDir, tokenDir: n.tokenDir, seccompDir: deploy(n.T) + "/seccomp",
	}))
	n.must(err)
	n.must(os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644))
	n.must(os.MkdirAll(podCgroup, 0o755))
	return name, bundle
}

// ends compares the exit code, and looks for words in what was said.
func (o outcome) ends(code int, words ...string) outcome {
	o.Helper()
	if o.code != code {
		o.Errorf("exit code %d, want %d\n%s", o.code, code, o.out)
	}
	for _, w := range words {
		if !strings.Contains(o.out, w) {
			o.Errorf("it does not say %q:\n%s", w, o.out)
		}
	}
	return o
}

// bpffsMounts are the mounts of a bpffs in the host's mount namespace, with their options.
func (n *node) bpffsMounts() []string {
	n.Helper()
	data, err := os.ReadFile("/proc/1/mountinfo")
	n.must(err)
	var mounts []string
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if right[0] == "bpf" {
			mounts = append(mounts, left[4]+" "+left[5]+","+right[2])
		}
	}
	return mounts
}

// pins lists what is in the bpffs, but for what a kernel puts there itself.
func (n *node) pins() (names []string) {
	n.Helper()
	n.must(filepath.WalkDir(bpffs, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != bpffs && !strings.HasSuffix(path, ".debug") {
			names = append(names, path)
		}
		return err
	}))
	return names
}

// release is that of the kernel: major and minor.
func release(t *testing.T) (major, minor int) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	if n, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); n != 2 {
		t.Fatal(err)
	}
	return major, minor
}

func below(t *testing.T, major, minor int) bool {
	a, b := release(t)
	return a < major || a == major && b < minor
}
