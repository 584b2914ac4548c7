package credplugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// infoVariable tells a plugin what is asked of it.
const infoVariable = "KUBERNETES_EXEC_INFO"

// pipeTime is how long a program that has ended may have others holding its output.
const pipeTime = 200 * time.Millisecond

// execute runs the program until it ends or ctx does. Nothing that it has started is left when it returns.
func (p *Plugin) execute(ctx context.Context, program, info string) ([]byte, error) {
	// The kernel sends the signal of Pdeathsig when the thread ends that has started the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := p.executeIn(ctx, unix.CLONE_NEWPID, program, info)
	var start *startError
	if errors.As(err, &start) && ctx.Err() == nil {
		// Without CAP_SYS_ADMIN, or such namespaces: what leaves its process group may stay.
		out, err = p.executeIn(ctx, 0, program, info)
	}
	return out, err
}

// startError says that the program was not started.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func (p *Plugin) executeIn(ctx context.Context, namespaces uintptr, program, info string) ([]byte, error) {
	stdout, stderr := &limited{max: hostfs.MaxFile}, &limited{max: 4096}
	cmd := exec.CommandContext(ctx, program, p.exec.Args...)
	cmd.Args[0] = p.exec.Command
	cmd.Dir = "/"
	cmd.Env = p.environment(os.Environ(), info)
	cmd.Stdout, cmd.Stderr = stdout, stderr // pipes, for they are no files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: namespaces}
	kill := func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = kill, pipeTime
	if err := cmd.Start(); err != nil {
		return nil, &startError{err}
	}
	err := cmd.Wait()
	if namespaces == 0 {
		_ = kill() // the rest of its group; with a namespace, all have ended
	}
	switch said := firstLine(stderr.String()); {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		if stdout.full {
			return nil, fmt.Errorf("it printed more than %d bytes", stdout.max)
		}
		return stdout.Bytes(), nil
	case said != "":
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	return nil, err
}

// environment is ours, without what changes which code a program runs, and without what is meant for us alone.
func (p *Plugin) environment(ours []string, info string) []string {
	env := slices.DeleteFunc(slices.Clone(ours), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		for _, prefix := range []string{"LD_", "FIRSTHOP_", "PYTHON", "PERL5", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", infoVariable} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return slices.Contains([]string{"PATH", "ENV", "BASH_ENV", "IFS"}, name)
	})
	env = append(env, "PATH="+path)
	if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		env = append(env, "HOME=/root") // a unit of systemd's has none
	}
	for _, v := range p.exec.Env {
		env = append(env, v.Name+"="+v.Value)
	}
	return append(env, infoVariable+"="+info)
}

// limited keeps the first bytes of what is written, and takes the rest.
type limited struct {
	bytes.Buffer
	max  int
	full bool
}

func (l *limited) Write(b []byte) (int, error) {
	if room := l.max - l.Len(); len(b) > room {
		l.full = true
		l.Buffer.Write(b[:room])
	} else {
		l.Buffer.Write(b)
	}
	return len(b), nil
}
