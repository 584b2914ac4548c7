package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// reapEnv makes a test binary a reaper: of the process whose id it has.
const reapEnv = "FIRSTHOP_LAB_REAP"

// reapDeadline bounds how long a reaper tries.
const reapDeadline = time.Minute

// reaper is started once. It keeps the pipe from the garbage collector, which would close it.
var reaper = sync.OnceValues(startReaper)

// Reap has everything that this process's labs leave on the machine removed as soon as the process has ended, however it
// ended: by a process of its own, which waits for that. Without it they are removed by the next [Sweep].
func Reap() error {
	_, err := reaper()
	return err
}

func startReaper() (pipe *os.File, err error) {
	// The pipe ends with this process: nobody else has its other end.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), reapEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.Dir = "/"
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's signal is for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start a reaper: %w", err)
	}
	return w, cmd.Process.Release()
}

func init() {
	pid, err := strconv.Atoi(os.Getenv(reapEnv))
	if err != nil {
		return
	}
	// The prefix while the process is there for sure: it has written no name yet.
	prefix := fmt.Sprintf("%s%d-%s-", namePrefix, pid, startTime(pid))
	_, _ = io.Copy(io.Discard, os.Stdin)
	for end := time.Now().Add(reapDeadline); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		_ = Sweep()
		if left, err := tracesOf(prefix); err == nil && len(left) == 0 {
			break
		}
	}
	os.Exit(0)
}
