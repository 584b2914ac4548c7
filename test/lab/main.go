package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
)

// mainCgroupEnv tells the process that runs the tests which cgroup is its own.
const mainCgroupEnv = "FIRSTHOP_LAB_MAIN_CGROUP"

// MainCgroup is the cgroup of this process, in a package whose TestMain calls RunMainInCgroup.
func MainCgroup(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := os.Getenv(mainCgroupEnv)
	if dir == "" {
		t.Fatal("TestMain of this package doesn't call RunMainInCgroup")
	}
	return dir
}

// RunMainInCgroup is RunMain in a process of its own that is born in a cgroup of its own: for the tests of what attaches
// to the cgroup that this process is in, which else may be the machine's root.
func RunMainInCgroup(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(mainCgroupEnv) != "" {
		return RunMain(m)
	}
	code, err := runInCgroup()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a cgroup of their own:", err)
		return 1
	}
	return code
}

func runInCgroup() (code int, err error) {
	name := ownPrefix() + "main"
	l := &Lab{Name: name, Dir: filepath.Join(os.TempDir(), name), space: space{netns.None()}}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := os.Mkdir(l.Dir, 0o755); err != nil {
		return 1, err
	}
	if err := l.createCgroup(); err != nil {
		return 1, err
	}
	runtime.LockOSThread() // whose end would be the child's: PR_SET_PDEATHSIG
	defer runtime.UnlockOSThread()
	cmd := newCmd(context.Background(), nil, l.cgroupFD, os.Args[0], os.Args[1:]).Cmd
	IntoCgroup(cmd, l.cgroupFD)
	cmd.Env = append(os.Environ(), mainCgroupEnv+"="+l.Cgroup)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return max(exit.ExitCode(), 1), nil
		}
		return 1, err
	}
	return 0, nil
}
