package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
)

// keepCaps in the environment makes the test binary give up all capabilities but the listed ones, and become the program
// in its arguments.
const keepCaps = "FH_TEST_KEEP_CAPS"

// becomeWithout is what the test binary does with keepCaps: an exec of root's gets all that the bounding set has left.
func becomeWithout(keep string, args []string) error {
	runtime.LockOSThread() // capabilities are the thread's, and exec is called by it
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if strings.Contains(","+keep+",", ","+strconv.Itoa(c)+",") {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return syscall.Exec(args[0], args, []string{"PATH=" + os.Getenv("PATH")})
}

// runAs runs firsthop on the node with fewer rights.
func (n node) runAs(change func(*exec.Cmd), args ...string) result {
	n.Helper()
	cmd := n.command(n.Context(), nil, args...)
	change(cmd)
	return finish(n.T, cmd, func() error { return n.start(cmd) })
}

// rootWith is root with no capability but the given ones.
func rootWith(caps ...int) func(*exec.Cmd) {
	var keep []string
	for _, c := range caps {
		keep = append(keep, strconv.Itoa(c))
	}
	return func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, keepCaps+"="+strings.Join(keep, ",")+",")
		cmd.Path = "/proc/self/exe" // this test
	}
}

func nobody(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

func TestInitWithoutRightsChangesNothing(t *testing.T) {
	fresh, serving := newNode(t), newNode(t)
	for _, n := range []node{fresh, serving} {
		n.serving()
	}
	serving.init()
	for _, who := range []struct {
		name string
		as   func(*exec.Cmd)
	}{
		{"nobody", nobody},
		{"root without capabilities", rootWith()},
		{"root in an ordinary container", rootWith(unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SETUID)},
		{"root with only CAP_NET_ADMIN", rootWith(unix.CAP_NET_ADMIN)},
		{"root with only CAP_BPF", rootWith(unix.CAP_BPF)},
	} {
		for name, n := range map[string]node{"a fresh node": fresh, "a node that serves": serving} {
			t.Run(who.name+" on "+name, func(t *testing.T) {
				n := n
				n.T = t
				before := n.state()
				for _, line := range [][]string{initArgs(), initArgs("--endpoints", "127.0.0.2:6443,"+server6), initArgs("--dry-run"), {"uninstall", "--force"}} {
					if n.Name == fresh.Name && line[0] == "uninstall" {
						continue // nothing to do, for which it needs no rights
					}
					r := n.runAs(who.as, line...).exits(bootstrap.ExitInternal)
					if out := strings.ToLower(r.stdout + r.stderr); !strings.Contains(out, "root") && !strings.Contains(out, "cap_") && !strings.Contains(out, "permission denied") {
						t.Errorf("it doesn't say what it lacks:\n%s%s", r.stdout, r.stderr)
					}
					n.stateUnchanged(before)
				}
			})
		}
	}
	serving.checkServes()
}

// TestFailureAsRootDoesNotAdviseRoot: whatever looks at a node that serves, or would change it.
func TestFailureAsRootDoesNotAdviseRoot(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	for _, line := range [][]string{{"status"}, {"nat"}, initArgs(), {"uninstall"}} {
		n.runAs(nobody, line...).exits(bootstrap.ExitInternal).says("run as root")
	}
}

// TestFailureOfAReadOnlyRunDirIsNoLackOfRights: to be root would not help.
func TestFailureOfAReadOnlyRunDirIsNoLackOfRights(t *testing.T) {
	n := newNode(t)
	n.serving()
	if err := unix.Mount(n.RunDir, n.RunDir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(n.RunDir, 0) })
	if err := unix.Mount("", n.RunDir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	r := n.run(initArgs()...).exits(bootstrap.ExitInternal).says("read-only", "--run-dir")
	if out := r.stdout + r.stderr; strings.Contains(out, "as root") {
		t.Errorf("it says to run as root:\n%s", out)
	}
}
