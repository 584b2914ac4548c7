package units

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/instance"
)

// stubEnv makes this test binary act as the service's program and write what
// it could do to the file of that name.
const stubEnv = "FH_UNITS_STUB"

func TestMain(m *testing.M) {
	if out := os.Getenv(stubEnv); out != "" {
		if err := runStub(out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if root := os.Getenv(killEnv); root != "" {
		if err := runInstall(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// stubReport is what the kernel said to each thing that the init stage does.
type stubReport struct {
	Args  []string          `json:"args"`
	Tried map[string]string `json:"tried"` // "" is success
}

// runStub does, under the hardening of the unit, all kinds of things that the
// init stage does, and some that it must not be able to do.
func runStub(out string) error {
	r := stubReport{Args: os.Args[1:], Tried: map[string]string{}}
	try := func(what string, f func() error) {
		r.Tried[what] = ""
		if err := f(); err != nil {
			r.Tried[what] = err.Error()
		}
	}
	try("mount a bpffs", func() error {
		return unix.Mount("bpffs", DefaultBPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	})
	try("mount by descriptors", func() error {
		fd, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.FsconfigCreate(fd); err != nil {
			return err
		}
		m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(m)
	})
	try("be in the mount namespace of pid 1", func() error {
		one, err := os.Readlink("/proc/1/ns/mnt")
		if err != nil {
			return err
		}
		if own, err := os.Readlink("/proc/self/ns/mnt"); err != nil || own != one {
			return fmt.Errorf("%s is not %s (%v)", own, one, err)
		}
		return nil
	})
	try("enter the mount namespace of pid 1", func() error { return ns.Do(enterMountNamespace) })
	try("read below /proc/1/root", func() error { _, err := os.Stat("/proc/1/root/etc/passwd"); return err })
	try("lift the memlock limit", rlimit.RemoveMemlock)
	try("attach to a cgroup and pin it", attachStub)
	try("start a child in a cgroup", func() error {
		d, err := os.Open("/sys/fs/cgroup")
		if err != nil {
			return err
		}
		defer d.Close()
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		return cmd.Run()
	})
	try("connect over loopback", connectLoopback)
	try("speak netlink", func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
	try("write its state", func() error {
		if err := os.MkdirAll(instance.DefaultStateDir, 0o755); err != nil {
			return err
		}
		return replaceFile(instance.DefaultStateDir+"/apiserver.json", 0o600, nil, strings.NewReader("{}"))
	})
	// What it can't do.
	try("NOT open a packet socket", func() error {
		_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		return err
	})
	try("NOT change the root directory", func() error { return unix.Chroot("/") })
	try("NOT load a module", func() error { return unix.InitModule([]byte("x"), "") })
	try("NOT make memory executable", func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	})
	try("NOT change the owner of a process", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) })
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(out, data, 0o644)
}

func enterMountNamespace() error {
	init, err := os.Open("/proc/1")
	if err != nil {
		return err
	}
	defer init.Close()
	return ns.EnterOf(init, unix.CLONE_NEWNS)
}

// attachStub attaches to the service's own cgroup a program that allows all.
func attachStub() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, path, _ := strings.Cut(string(own), "::")
	l, err := link.AttachCgroup(link.CgroupOptions{Path: "/sys/fs/cgroup" + strings.TrimSpace(path), Attach: ebpf.AttachCGroupInet4Connect, Program: prog})
	if err != nil {
		return err
	}
	defer l.Close()
	return prog.Pin(DefaultBPFFS + "/fh-stub")
}

func connectLoopback() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return c.Close()
}
