package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
	"golang.org/x/sys/unix"
)

// addressed is a pod with the addresses given, as daemonset.yaml shows it.
func addressed(t *testing.T, patches ...string) pod {
	t.Helper()
	return withAddresses(manifest(t, append(oldKernel(t), patches...)...).Spec.Template.Spec)
}

// withAddresses gives them to the init container.
func withAddresses(p pod) pod {
	p.InitContainers[0].Env = append(p.InitContainers[0].Env,
		variable{Name: "KUBERNETES_SERVICE_IPS_PORTS", Value: vip}, variable{Name: "KUBERNETES_APISERVER_ENDPOINTS", Value: server})
	return p
}

// thisBootOnly leaves out what is done for the next boot, to which an emulated systemd takes its time.
func thisBootOnly(p pod) pod {
	p.InitContainers[0].Env = append(p.InitContainers[0].Env, variable{Name: "FIRSTHOP_PERSIST", Value: "off"})
	return p
}

// propagation sets that of the host's /sys: systemd shares it, and other inits don't.
func (n *node) propagation(kind string) {
	n.Helper()
	n.done("mount", "--make-r"+kind, "/sys")
	n.Cleanup(func() { n.done("mount", "--make-rshared", "/sys") })
}

// TestInitContainer: by every way to the host, whatever propagation there is, with and without a bpffs.
func TestInitContainer(t *testing.T) {
	n := newNode(t)
	if saw := kube.Visit(server); saw != greeting {
		t.Fatalf("the stand-in API server says %q", saw)
	}
	for _, row := range []struct {
		is          string
		patches     []string
		propagation string
		unmounted   bool
		thisBoot    bool
	}{
		{"hostPID", nil, "shared", false, false},
		{"the host's proc, a private /sys without a bpffs, our seccomp profile", []string{"host-proc.yaml", "localhost-seccomp.yaml"}, "private", true, false},
		{"hostPID, a private /sys without a bpffs, our seccomp profile", []string{"localhost-seccomp.yaml"}, "private", true, true},
		{"the host's proc, a shared /sys without a bpffs", []string{"host-proc.yaml"}, "shared", true, true},
	} {
		t.Run(row.is, func(t *testing.T) {
			n := n.on(t)
			n.propagation(row.propagation)
			if row.unmounted {
				n.unmountBPFFS()
			}
			if kube.Visit(vip) == greeting {
				t.Fatal("the Service IP works before")
			}
			p := addressed(t, row.patches...)
			if row.thisBoot {
				p = thisBootOnly(p)
			}
			n.start(p).ends(0, vip, server)
			n.serves()
			again := n.start(p).ends(0, "(kept)")
			for _, change := range []string{"added", "created", "wrote", "mkdir", "enable"} {
				if strings.Contains(again.out, change) {
					t.Errorf("the second run changes something (%s):\n%s", change, again.out)
				}
			}
			n.serves()
			if !row.thisBoot {
				n.installed()
			}
			n.forget()
			if saw := kube.Visit(vip); saw == greeting {
				t.Error("it still works after uninstall")
			}
			if got := n.bpffsMounts(); row.unmounted && len(got) > 0 {
				t.Errorf("its mount stays: %q", got)
			}
		})
	}
}

// unmountBPFFS makes a host of one that has a bpffs without one, until the end of the test.
func (n *node) unmountBPFFS() {
	n.Helper()
	n.done("umount", bpffs)
	n.Cleanup(func() {
		n.forget()
		n.done("mount", "-t", "bpf", "-o", "nosuid,nodev,noexec,mode=0700", "bpf", bpffs)
	})
}

// serves shows that the balancer is there when the container is not: to a process of the host, and to one in another
// container, which is in a network namespace of its own.
func (n *node) serves() {
	n.Helper()
	if saw := kube.Visit(vip); saw != greeting {
		n.Errorf("the Service IP says %q to a process of the host", saw)
	}
	if saw := n.visitor(); saw != greeting {
		n.Errorf("the Service IP says %q to a container", saw)
	}
	mounts := n.bpffsMounts()
	if len(mounts) != 1 || !strings.HasPrefix(mounts[0], bpffs+" ") {
		n.Fatalf("mounts of a bpffs on the host: %q, want one, at %s", mounts, bpffs)
	}
	for _, want := range []string{"nosuid", "nodev", "noexec", "mode=700"} {
		if !slices.Contains(strings.Split(strings.Fields(mounts[0])[1], ","), want) {
			n.Errorf("it is mounted %s, without %s", mounts[0], want)
		}
	}
}

// visitor connects from an ordinary pod: no rights, a network namespace of its own.
func (n *node) visitor() string {
	n.Helper()
	return n.visitorOf(vip)
}

func (n *node) visitorOf(address string) string {
	n.Helper()
	const netns = "/run/netns/visitor"
	if _, err := os.Stat(netns); err != nil {
		for _, line := range []string{
			"ip netns add visitor", "ip link add fhv type veth peer name eth0 netns visitor",
			"ip address add 10.244.0.1/24 dev fhv", "ip link set fhv up",
			"ip -n visitor address add 10.244.0.2/24 dev eth0", "ip -n visitor link set eth0 up", "ip -n visitor route add default via 10.244.0.1",
		} {
			words := strings.Fields(line)
			n.done(words[0], words[1:]...)
		}
	}
	rootfs := workDir + "/visitor"
	if _, err := os.Stat(rootfs + "/visit"); err != nil {
		n.must(os.MkdirAll(rootfs, 0o755))
		self, err := os.ReadFile("/proc/self/exe")
		n.must(err)
		n.must(os.WriteFile(rootfs+"/visit", self, 0o755))
	}
	c := manifest(n.T).Spec.Template.Spec.Containers[0] // as one that has no rights
	c.Name, c.Args, c.Resources.Limits = "init", []string{address, "visit"}, map[string]string{"memory": "256Mi"}
	o := n.startAs(pod{}, c, imageConfig{Entrypoint: []string{"/visit"}, WorkingDir: "/"}, rootfs, netns)
	return o.out
}

// installed shows what the container left on the host for the next boot.
func (n *node) installed() {
	n.Helper()
	if out, _ := n.command("systemctl", "is-enabled", unit); out != "enabled" {
		n.Errorf("%s is %s", unit, out)
	}
	copied, err := os.ReadFile("/opt/firsthop/bin/firsthop")
	n.must(err)
	own, err := os.ReadFile(n.rootfs() + "/usr/bin/firsthop")
	n.must(err)
	if !bytes.Equal(copied, own) {
		n.Error("the host's copy of the program is another one")
	}
	for _, file := range []string{"/var/lib/firsthop/apiserver.json", "/run/firsthop/status.json"} {
		if _, err := os.Stat(file); err != nil {
			n.Error(err)
		}
	}
	n.firsthop("status")
	if _, err := os.Stat(n.rootfs() + "/var"); err == nil {
		n.Error("the container kept something to itself")
	}
}

// TestInitContainerWithoutCapability takes each capability of the manifest away in turn. It says so, with an exit code of its own, and
// leaves nothing behind that serves; or it isn't needed on this node, and docs/container.md says where it is.
func TestInitContainerWithoutCapability(t *testing.T) {
	n := newNode(t)
	memcg := !below(t, 5, 11)
	rows := []struct {
		less    string
		noBPFFS bool
		code    int
		says    []string
	}{
		{less: "SYS_ADMIN", code: 1, says: []string{"lack of rights", "CAP_SYS_ADMIN"}},
		{less: "NET_ADMIN", code: 4, says: []string{"operation not permitted", "CAP_NET_ADMIN"}},
		{less: "SYS_PTRACE", code: 1, says: []string{"the host can't be reached", "CAP_SYS_PTRACE"}},
		{less: "SYS_CHROOT", noBPFFS: true, code: 2, says: []string{"setns", "CAP_SYS_CHROOT"}},
		{less: "SYS_RESOURCE", code: 1, says: []string{"RLIMIT_MEMLOCK", "CAP_SYS_RESOURCE"}},
		{less: "SYS_CHROOT", says: []string{"done in"}},
	}
	if !below(t, 6, 9) { // CAP_SYS_ADMIN stands in for it everywhere, since BPF tokens
		rows[1].code, rows[1].says = 0, []string{"done in"}
	}
	if memcg { // the manifest has no SYS_RESOURCE
		rows = slices.Delete(rows, 4, 5)
	}
	took := make(map[string]bool)
	for _, row := range rows {
		name := row.less
		if row.noBPFFS {
			name += ", without a bpffs"
		}
		t.Run(name, func(t *testing.T) {
			n := n.on(t)
			t.Cleanup(n.forget)
			if row.noBPFFS {
				n.propagation("private") // or else there would be another way
				n.unmountBPFFS()
			}
			p := addressed(t)
			if row.code != 0 || row.less == "NET_ADMIN" || row.less == "SYS_RESOURCE" {
				p = thisBootOnly(p)
			}
			caps := &p.InitContainers[0].SecurityContext.Capabilities
			for _, less := range strings.Fields(row.less) {
				took[less] = true
				at := slices.Index(caps.Add, less)
				if at < 0 {
					t.Fatalf("the manifest has no %s: %q", less, caps.Add)
				}
				caps.Add = slices.Delete(slices.Clone(caps.Add), at, at+1)
			}
			n.start(p).ends(row.code, row.says...)
			if served := kube.Visit(vip) == greeting; served != (row.code == 0) {
				t.Errorf("the Service IP works: %v", served)
			}
		})
	}
	for _, name := range addressed(t).InitContainers[0].SecurityContext.Capabilities.Add {
		if !took[name] {
			t.Errorf("%s was never taken away", name)
		}
	}
}

// TestInitContainerMemoryLimit: what the manifest has leaves room, which the other tests show; with half of it a first init, the
// most expensive one, still succeeds; with less it says why it does not.
func TestInitContainerMemoryLimit(t *testing.T) {
	n := newNode(t)
	half := manifest(t).Spec.Template.Spec.InitContainers[0].Resources.Limits["memory"]
	half = fmt.Sprintf("%dMi", bytesOf(t, half)>>21)
	for _, row := range []struct {
		limit string
		codes []int // any of them: how far it comes is the kernel's affair
		says  []string
	}{
		{half, []int{0}, []string{"done in"}},
		{"16Mi", []int{4, 137}, []string{"the memory limit of this process is 16 MiB", "32 MiB are needed"}},
	} {
		t.Run(row.limit, func(t *testing.T) {
			n := n.on(t)
			t.Cleanup(n.forget)
			p := addressed(t)
			p.InitContainers[0].Resources.Limits["memory"] = row.limit
			if row.codes[0] != 0 {
				p = thisBootOnly(p)
			}
			if row.codes[0] != 0 && below(t, 5, 11) {
				row.codes = append(row.codes, 0) // maps are not charged
			}
			o := n.start(p)
			if !slices.Contains(row.codes, o.code) {
				t.Errorf("exit code %d, want one of %d", o.code, row.codes)
			}
			if o.code == 4 {
				row.says = append(row.says, "create map", "maps are charged to the memory limit of this container")
			}
			o.ends(o.code, row.says...)
		})
	}
}

// TestInitContainerWithoutSyscall takes a system call out of our seccomp profile.
func TestInitContainerWithoutSyscall(t *testing.T) {
	n := newNode(t)
	for _, row := range []struct {
		name    string
		noBPFFS bool
		code    int
		says    []string
	}{
		{"bpf", false, 1, []string{"seccomp"}},
		{"name_to_handle_at", false, 3, []string{"name_to_handle_at", "seccomp"}},
		{"setns", true, 2, []string{"setns", "seccomp"}},
		{"mount move_mount", true, 2, []string{"mount bpf", "seccomp"}}, // which of them, goes by the kernel
	} {
		t.Run(row.name, func(t *testing.T) {
			n := n.on(t)
			t.Cleanup(n.forget)
			if row.noBPFFS {
				n.propagation("private")
				n.unmountBPFFS()
			}
			p := thisBootOnly(addressed(t, "localhost-seccomp.yaml"))
			p.InitContainers[0].SecurityContext.SeccompProfile.LocalhostProfile = n.profileWithout(row.name)
			n.start(p).ends(row.code, row.says...)
			if kube.Visit(vip) == greeting {
				t.Error("the Service IP works")
			}
		})
	}
}

// profileWithout writes our profile without system calls, and returns its name relative to the kubelet's directory.
func (n *node) profileWithout(name string) string {
	n.Helper()
	var prof map[string]any
	dir := deploy(n.T) + "/seccomp"
	n.must(json.Unmarshal(read(n.T, dir, "firsthop-init.json"), &prof))
	rule := prof["syscalls"].([]any)[0].(map[string]any)
	names := rule["names"].([]any)
	for less := range strings.FieldsSeq(name) {
		at := slices.Index(names, any(less))
		if at < 0 {
			n.Fatalf("the profile has no %s", less)
		}
		names = slices.Delete(slices.Clone(names), at, at+1)
	}
	rule["names"] = names
	data, err := json.Marshal(prof)
	n.must(err)
	file := filepath.Join(workDir, "without-"+strings.ReplaceAll(name, " ", "-")+".json")
	n.must(os.WriteFile(file, data, 0o644))
	rel, err := filepath.Rel(dir, file)
	n.must(err)
	return rel
}

// TestInstalledStays leaves to the next boot what a container has installed.
func TestInstalledStays(t *testing.T) {
	n := newNodeThatStays(t)
	n.start(addressed(t)).ends(0)
	n.serves()
	n.installed()
	unix.Sync()
}

// TestInstalledServesNextBoot is for the boot after that: no container has run in it.
func TestInstalledServesNextBoot(t *testing.T) {
	n := newNodeThatStays(t)
	saw, err := os.ReadFile(kubeletSaw)
	n.must(err)
	if string(saw) != greeting {
		t.Errorf("the Service IP says %q to the kubelet's first connection", saw)
	}
	if out, _ := n.command("systemctl", "is-active", unit); out != "active" {
		t.Errorf("%s is %s", unit, out)
	}
	n.serves()
	n.start(addressed(t)).ends(0, "(kept)") // the DaemonSet's pod starts again too
	n.serves()
	n.forget()
	if got := n.pins(); len(got) > 0 {
		t.Errorf("pins: %q", got)
	}
	for _, file := range []string{"/run/firsthop", "/var/lib/firsthop", "/opt/firsthop"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is left", file)
		}
	}
}
