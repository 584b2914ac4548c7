package units

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// container is a systemd that is pid 1 of namespaces of its own: mounts, pids,
// network, cgroup. Its root file system is reachable as the host's is from a
// pod with hostPID: /proc/PID/root.
type container struct {
	t    *testing.T
	root string // /proc/PID/root
	log  string
}

// needsContainer says what it takes; on a machine that has it all the tests
// run, they do not skip.
func needsContainer(t *testing.T) (cgroup2 string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range []string{"/lib/systemd/systemd", "/usr/bin/unshare"} {
		if _, err := os.Stat(p); err != nil {
			t.Skipf("%v (Debian packages systemd, util-linux)", err)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		t.Skipf("no cgroup2 mount: %v", err)
	}
	return mounts[0].Mountpoint
}

// boot starts systemd on a root that is filled from a template and waits until
// it answers on its private socket. All is gone at the end of the test.
func boot(t *testing.T, template host) container {
	t.Helper()
	cgroup := filepath.Join(needsContainer(t), fmt.Sprintf("fh-units-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, cgroup) })
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	log := filepath.Join(t.TempDir(), "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	script, err := filepath.Abs("testdata/boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	// unshare makes the cgroup namespace, from inside of the cgroup: a clone
	// into a cgroup takes the parent's as the root of the namespace.
	cmd := exec.Command("unshare", "-m", "-p", "-f", "-C", "-u", "-i", "-n", "--kill-child", "sh", script, template.root, t.TempDir())
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0) // all of it, not the parent alone
		_ = cmd.Process.Kill()
		<-exited
	})
	c := container{t: t, log: log}
	c.wait("systemd's private socket", func() bool {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("the container ended: %v\n%s", err, c.console())
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil || len(strings.Fields(string(children))) == 0 {
			return false
		}
		c.root = "/proc/" + strings.Fields(string(children))[0] + "/root"
		_, err = os.Stat(c.root + privateSocket)
		return err == nil
	})
	return c
}

// removeCgroup waits for the killed processes to leave, then removes the tree.
func removeCgroup(t *testing.T, cgroup string) {
	c := container{t: t}
	c.wait("an empty cgroup", func() bool {
		var dirs []string
		_ = filepath.WalkDir(cgroup, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			_ = syscall.Rmdir(d)
		}
		_, err := os.Stat(cgroup)
		return errors.Is(err, fs.ErrNotExist)
	})
}

func (c container) console() string {
	data, _ := os.ReadFile(c.log)
	return string(data)
}

// wait polls for what comes from outside of this process.
func (c container) wait(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			c.t.Fatalf("waited in vain for %s\n%s", what, c.console())
		case <-tick.C:
		}
	}
}

// rootTemplate is the least that a systemd boots from.
func rootTemplate(t *testing.T) host {
	return newHost(t, map[string]string{
		"/etc/passwd":                        "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n",
		"/etc/group":                         "root:x:0:\nmessagebus:x:100:\n",
		"/etc/machine-id":                    "0123456789abcdef0123456789abcdef\n",
		"/etc/os-release":                    "ID=fh\n",
		"/etc/dbus-1/":                       "",
		"/opt/":                              "",
		"/etc/systemd/system/default.target": "-> /usr/lib/systemd/system/multi-user.target",
		// Not needed here and slow to come up or down.
		"/etc/systemd/system/systemd-logind.service":   "-> /dev/null",
		"/etc/systemd/system/getty.target":             "-> /dev/null",
		"/etc/systemd/system/systemd-networkd.service": "-> /dev/null",
		"/etc/systemd/system/systemd-journald.service": "-> /dev/null",
		"/etc/systemd/system/kubelet.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
			"ExecStart=-/bin/cp /run/stub.json /run/kubelet-saw.json\nExecStart=/bin/touch /run/kubelet-started\n[Install]\nWantedBy=multi-user.target\n",
		"/etc/systemd/system/multi-user.target.wants/kubelet.service": "-> /etc/systemd/system/kubelet.service",
	})
}
