package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// haveCloneIntoCgroup tells whether clone3 knows CLONE_INTO_CGROUP: kernel 5.7, commit ef2c41cf38a7.
var haveCloneIntoCgroup = sync.OnceValue(func() bool {
	major, minor := running()
	return major > 5 || major == 5 && minor >= 7
})

// IntoCgroup has a process born in an open cgroup, when all else about it is prepared. It has none of the capabilities
// in drop. Below Linux 5.7 the process joins the cgroup before its program starts, and only then gives up rights and
// enters further namespaces, as CLONE_INTO_CGROUP would have it.
//
// Capabilities are taken from the thread that calls, which must not be used for anything else but to start the process.
func IntoCgroup(cmd *exec.Cmd, cgroup *os.File, drop ...int) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	attr := cmd.SysProcAttr
	switch {
	case haveCloneIntoCgroup():
		attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
		if err := dropBounding(drop); err != nil && cmd.Err == nil {
			cmd.Err = err
		}
	case attr.Credential == nil && attr.Unshareflags == 0 && len(drop) == 0: // a shell starts faster than a test
		const join = `echo 0 >"$0"/cgroup.procs && exec "$@"`
		cmd.Args = append([]string{"/bin/sh", "-c", join, cgroup.Name(), cmd.Path}, cmd.Args[1:]...)
		cmd.Path = cmd.Args[0]
	default:
		throughJoiner(cmd, cgroup.Name(), drop)
	}
}

// joinEnv makes a test binary a joiner.
const joinEnv = "FIRSTHOP_LAB_JOIN"

// joiner is what a process does before it becomes another program.
type joiner struct {
	Cgroup  string
	Unshare uintptr
	Drop    []int
	Creds   *syscall.Credential
	Ambient []uintptr
	Death   syscall.Signal
	Path    string
}

// throughJoiner starts this test binary in the program's place.
func throughJoiner(cmd *exec.Cmd, cgroup string, drop []int) {
	attr := cmd.SysProcAttr
	data, err := json.Marshal(joiner{cgroup, attr.Unshareflags, drop, attr.Credential, attr.AmbientCaps, attr.Pdeathsig, cmd.Path})
	if err != nil && cmd.Err == nil {
		cmd.Err = err
	}
	attr.Unshareflags, attr.Credential, attr.AmbientCaps = 0, nil, nil
	cmd.Env = append(cmd.Environ(), joinEnv+"="+string(data))
	cmd.Path = "/proc/self/exe"
}

// A joiner runs before everything else of a test binary.
func init() {
	data, ok := os.LookupEnv(joinEnv)
	if !ok {
		return
	}
	var j joiner
	err := json.Unmarshal([]byte(data), &j)
	if err == nil {
		err = j.become()
	}
	fmt.Fprintf(os.Stderr, "start a process in a cgroup: %v\n", err)
	os.Exit(1)
}

// become returns only if it fails.
func (j joiner) become() error {
	runtime.LockOSThread() // whose rights the program has
	if err := os.WriteFile(filepath.Join(j.Cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	if j.Unshare != 0 {
		if err := unix.Unshare(int(j.Unshare)); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
	}
	if err := dropBounding(j.Drop); err != nil {
		return err
	}
	if err := j.takeCredentials(); err != nil {
		return err
	}
	if j.Death != 0 { // a change of user has unset it
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(j.Death), 0, 0, 0); err != nil {
			return err
		}
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, joinEnv+"=") {
			env = append(env, v)
		}
	}
	return fmt.Errorf("start %s: %w", j.Path, unix.Exec(j.Path, os.Args, env))
}

// takeCredentials changes this thread alone, as its program is all that is left of the process.
func (j joiner) takeCredentials() error {
	if j.Creds != nil {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return err
		}
		uid, gid := uintptr(j.Creds.Uid), uintptr(j.Creds.Gid)
		err := errors.Join(onThisThread(unix.SYS_SETGROUPS, 0, 0), onThisThread(unix.SYS_SETRESGID, gid, gid, gid), onThisThread(unix.SYS_SETRESUID, uid, uid, uid))
		if err != nil {
			return fmt.Errorf("change the user: %w", err)
		}
	}
	if len(j.Ambient) == 0 {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	for _, c := range j.Ambient {
		caps[c/32].Inheritable |= 1 << (c % 32)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return err
	}
	for _, c := range j.Ambient {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// onThisThread is a system call with up to three arguments that the library would make on all threads.
func onThisThread(call uintptr, args ...uintptr) error {
	args = append(args, 0, 0, 0)
	if _, _, errno := unix.RawSyscall(call, args[0], args[1], args[2]); errno != 0 {
		return errno
	}
	return nil
}

// dropBounding takes capabilities from what programs that this thread starts can have.
func dropBounding(drop []int) error {
	for _, c := range drop {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}
