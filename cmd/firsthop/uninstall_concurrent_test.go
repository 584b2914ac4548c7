package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/uninstall"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// TestUninstallDuringAnInitRefuses: it looks again when it has the lock, and then there is a node to be cut off.
func TestUninstallDuringAnInitRefuses(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	holder := n.slow(t.Context())
	n.run("uninstall", "--lock-timeout", "20ms").exits(bootstrap.ExitInternal).says("another firsthop")
	n.run("uninstall", "--lock-timeout", "20s").exits(bootstrap.ExitInternal).says("nothing else serves", vip4)
	if err := holder.Wait(); err != nil {
		t.Error("the init:", err)
	}
	n.checkOneOfEach()
	n.run("status").exits(0).says("serving; proven")
	n.run("uninstall", "--force").exits(0)
}

// TestUninstallThatBeganBeforeTheMountWaitsForTheTable: an init with another run directory mounts the bpffs and attaches
// while an uninstall waits, which has seen no bpffs. It must not remove what that init is about to prove.
func TestUninstallThatBeganBeforeTheMountWaitsForTheTable(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	lock, err := os.Create(filepath.Join(n.RunDir, instance.LockName))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	tried := onOpen(t, lock.Name())
	uninstall := n.command(t.Context(), nil, "uninstall", "--force")
	if err := n.start(uninstall); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- uninstall.Wait() }()
	lab.Await(t, "the uninstall to try the lock", tried)

	other := n
	other.RunDir = n.Dir + "/other"
	init := other.command(t.Context(), nil, "init", "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "--timeout", "5s")
	if err := n.start(init); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the links to be pinned", func() bool {
		entries, _ := os.ReadDir(n.pins().Links())
		return len(entries) == len(bpf.Hooks())
	})
	lock.Close() // gives it to the uninstall
	var early error
	over, waits := false, 0
	lab.Await(t, "the uninstall to wait for the table, or to end", func() bool {
		select {
		case early = <-ended:
			over = true
		default:
		}
		if waits++; !opened(uninstall.Process.Pid, n.BPFFS) {
			waits = 0
		}
		return over || waits > 20 // it doesn't just look
	})
	n.echo("tcp", "b4", server4)
	if err := init.Wait(); err != nil {
		t.Error("the init:", err)
	}
	if over {
		t.Error("the uninstall ended during the init:", early)
	} else if err := <-ended; err != nil {
		t.Error("the uninstall:", err)
	}
	if got := n.attached(); len(got) > 0 {
		t.Errorf("still attached: %q", got)
	}
	other.run("uninstall", "--force").exits(0) // the mount is noted there
	if got := n.mounts(); len(got) > 0 {
		t.Errorf("still mounted: %q", got)
	}
}

// onOpen watches a file and says whether somebody has opened it since.
func onOpen(t *testing.T, path string) func() bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	return func() bool {
		n, err := unix.Read(fd, buf)
		return err == nil && n > 0
	}
}

// opened reports whether a process has a file open.
func opened(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir)
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		to, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		return to == path
	})
}

// TestUninstallLeavesAMountThatOthersUse, and says so.
func TestUninstallLeavesAMountThatOthersUse(t *testing.T) {
	for _, tc := range []struct {
		name string
		use  func(n node)
		says string
	}{
		{"for a directory of theirs", func(n node) {
			if err := os.Mkdir(n.BPFFS+"/theirs", 0o700); err != nil {
				n.Fatal(err)
			}
		}, "it holds theirs"},
		{"as the working directory of a process", func(n node) {
			cmd := exec.Command("sleep", "60")
			cmd.Dir = n.BPFFS
			if err := cmd.Start(); err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
		}, "working directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, lab.WithoutBPFFS())
			n.serving()
			n.init()
			tc.use(n)
			mounts := n.mounts()
			r := n.run("uninstall", "--force", "-o", "json").exits(0).says("left", n.BPFFS, tc.says)
			var removed []uninstall.Removal
			r.decode(&removed)
			for _, rm := range removed {
				if rm.Target == n.BPFFS {
					t.Errorf("it says that it removed %+v", rm)
				}
			}
			n.stillMounted(mounts)
			for range 2 {
				r := n.run("uninstall", "--force").exits(0).says("nothing of firsthop's is here")
				if strings.Contains(r.stderr, n.BPFFS) {
					t.Errorf("the second time it says %s", r.stderr)
				}
				n.stillMounted(mounts)
			}
			n.init() // takes the mount that is there
			n.checkOneOfEach()
			n.run("uninstall", "--force").exits(0)
			n.stillMounted(mounts)
		})
	}
}

// stillMounted wants these mounts, and nothing of ours below the bpffs.
func (n node) stillMounted(mounts snapshot) {
	n.Helper()
	if got := n.mounts(); !slices.Equal(got, mounts) {
		n.Errorf("mounts %q, before %q", got, mounts)
	}
	if got := n.attached(); len(got) > 0 {
		n.Errorf("still attached: %q", got)
	}
	if _, err := os.Lstat(n.pins().Dir); err == nil {
		n.Errorf("%s is still there", n.pins().Dir)
	}
}
