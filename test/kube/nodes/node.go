package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// Node is a machine of the cluster: its disk, and while it has power, what runs there.
type Node struct {
	Name, IP string

	c          *Cluster
	disk, pods string // the directory of its disk; the addresses of its pods
	port       string // the hub's interface to it

	lab  *lab.Lab // while it has power
	init *lab.Cmd // unshare, whose child is the node's first process
	pid  int      // that of the node's first process
}

// join puts the shell into the cgroups that come before "--" and runs what comes behind.
const join = `while [ "$1" != -- ]; do echo 0 >"$1"/cgroup.procs || exit 125; shift; done; shift; exec "$@"`

// command prepares a process in the node's network namespace and cgroups.
func (n *Node) command(ctx context.Context, args ...string) *lab.Cmd {
	sh := []string{"-c", join, "sh"}
	for _, h := range n.lab.CgroupsV1 {
		sh = append(sh, h.Dir)
	}
	return n.lab.Command(ctx, "/bin/sh", append(append(sh, "--"), args...)...)
}

// running tells whether the node has power.
func (n *Node) running() bool { return n.lab != nil }

// Boot gives the node power, and returns when systemd has started containerd.
func (n *Node) Boot() {
	n.c.t.Helper()
	if n.running() {
		n.c.t.Fatalf("boot %s: it has power", n.Name)
	}
	l, err := lab.Create(lab.WithoutBPFFS(), lab.WithCgroupsV1()) // the node has a bpffs of its own
	n.c.must(err)
	n.lab = l
	// What a lab has for its many clients would have them use ports of the node's servers.
	n.c.must(l.Sysctl("net.ipv4.ip_local_port_range", "32768 60999"))
	n.c.must(l.Sysctl("net.ipv4.ip_forward", "1"))
	n.c.must(n.c.plug(n))
	spec, err := json.Marshal(n.spec())
	n.c.must(err)
	console, err := os.Create(filepath.Join(n.disk, "console"))
	n.c.must(err)
	defer console.Close()
	exe, err := os.Executable()
	n.c.must(err)
	first := n.command(context.Background(), "unshare", "--cgroup", "--mount", "--uts", "--ipc", "--pid", "--fork",
		"--kill-child=SIGKILL", exe)
	first.Env = append(os.Environ(), bootEnv+"="+string(spec))
	first.Stdout, first.Stderr = console, console
	n.c.must(first.Start())
	n.init = first
	n.await("systemd starts containerd", func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", n.init.Process.Pid, n.init.Process.Pid))
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
		if err != nil {
			if n.pid != 0 {
				n.c.t.Fatalf("%s: systemd ended while it started: are there enough instances of inotify (fs.inotify.max_user_instances)?", n.Name)
			}
			return fmt.Errorf("no first process: %w", err)
		}
		n.pid = pid
		_, err = n.Try("systemctl is-active containerd")
		return err
	})
}

// spec is what the first process does before it becomes systemd.
func (n *Node) spec() boot {
	b := boot{
		Name: n.Name, Disk: n.disk, Lower: n.c.files.root, Pods: n.pods,
		Binds: map[string]string{
			n.c.files.programs:                   "opt/kube",
			n.c.files.images:                     "opt/images",
			filepath.Join(n.c.hub.Dir, "deploy"): "opt/deploy",
			filepath.Join(n.disk, "containerd"):  "var/lib/containerd", // no overlay: there are some in it
			filepath.Join(n.disk, "kubelet"):     "var/lib/kubelet",
			filepath.Join(n.disk, "etcd"):        "var/lib/etcd",
			filepath.Join(n.disk, "log"):         "var/log/pods",
			filepath.Join(n.disk, "console"):     "dev/console",
			filepath.Dir(n.c.files.firsthop):     "opt/under-test", // not /opt/firsthop: that is where it installs itself
		},
		Hosts: "127.0.0.1 localhost\n",
	}
	for i := range 5 {
		b.Hosts += fmt.Sprintf("%s n%d\n", address(i), i+1)
	}
	maps.Copy(b.Binds, n.c.Binds)
	for _, h := range n.lab.CgroupsV1 {
		b.Cgroups = append(b.Cgroups, [2]string{h.Name, h.Options})
	}
	return b
}

// environment is what a command of Sh has.
var environment = []string{
	"HOME=/root", "TERM=dumb", "KUBECONFIG=/etc/kubernetes/admin.conf",
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

// enter prepares a shell script as an administrator of the node would run it, in the node's own cgroup.
func (n *Node) enter(ctx context.Context, script string) *lab.Cmd {
	args := []string{"nsenter", "-t", strconv.Itoa(n.pid), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i"}
	return n.command(ctx, append(append(args, environment...), "/bin/sh", "-c", script)...)
}

// Try runs a shell script on the node and returns what it prints, on both streams.
func (n *Node) Try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := n.enter(ctx, script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Stream runs a shell script on the node, and writes what it prints as it comes. It may take as long as it wants.
func (n *Node) Stream(out io.Writer, script string) error {
	cmd := n.enter(n.c.t.Context(), script)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

// Sh is Try that ends the test where the script fails.
func (n *Node) Sh(script string) string {
	n.c.t.Helper()
	out, err := n.Try(script)
	if err != nil {
		n.c.t.Fatalf("%s: %s: %v\n%s", n.Name, script, err, out)
	}
	return out
}

// Await runs a shell script until it succeeds.
func (n *Node) Await(what, script string) {
	n.c.t.Helper()
	n.await(what, func() error {
		out, err := n.Try(script)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

func (n *Node) await(what string, condition func() error) {
	n.c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			console, _ := os.ReadFile(filepath.Join(n.disk, "console"))
			n.c.t.Fatalf("%s: waited %s in vain: %s: %v\n%s", n.Name, patience, what, err, console[max(0, len(console)-4000):])
		}
	}
}

// Put writes a file of the node.
func (n *Node) Put(path, text string) {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(n.c.t.Context(), patience)
	defer cancel()
	cmd := n.enter(ctx, fmt.Sprintf("mkdir -p '%s' && cat >'%s'", filepath.Dir(path), path))
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.c.t.Fatalf("%s: write %s: %v\n%s", n.Name, path, err, out)
	}
}

// Cut takes the node's power away: every process of it dies at once.
func (n *Node) Cut() {
	n.c.t.Helper()
	if !n.running() {
		return
	}
	if n.init != nil {
		_ = n.init.Process.Kill() // the node's first process dies with it, and all others with that
		_ = n.init.Wait()
	}
	if err := n.lab.Close(); err != nil {
		n.c.t.Error("cut the power:", err)
	}
	// The kernel would remove it some time after the namespace of its other end.
	if err := n.c.unplug(n); err != nil {
		n.c.t.Error("cut the power:", err)
	}
	n.lab, n.init, n.pid = nil, nil, 0
}

// Reboot shuts the node down in good order and boots it again.
func (n *Node) Reboot() {
	n.c.t.Helper()
	n.Sh("systemctl poweroff --no-block")
	done := make(chan struct{})
	go func() { _ = n.init.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		n.c.t.Fatalf("%s does not shut down in %s", n.Name, patience)
	}
	n.Cut()
	n.Boot()
}
