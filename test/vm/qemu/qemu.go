// Package qemu boots a kernel in an emulated machine, reads what the guest's PID 1 says over a serial port, and ends
// machines that hang.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/vm/wire"
)

// Machine is what to boot.
type Machine struct {
	Kernel    string // the image
	Initramfs string
	Cmdline   string // besides what Boot adds
	Disk      string // a raw image as /dev/vda, "" for none
	MemoryMB  int
	Console   string // the file that gets what the kernel and the firmware say
	// Grace is how long the guest may be silent on the wire: until Hello, and after the time of a job is over.
	Grace time.Duration
}

// Errors that say how a machine ended.
var (
	ErrHang  = errors.New("no sign of life")
	ErrPanic = errors.New("kernel panic")
	ErrEnded = errors.New("the machine went off too early")
)

// EmulatorError says that qemu itself did not do its work.
type EmulatorError struct {
	Err   error
	Words string // what it wrote to its standard error
}

func (e *EmulatorError) Error() string { return fmt.Sprintf("run qemu: %v: %s", e.Err, e.Words) }

// Boot runs a machine until it goes off, and calls fn for each event. It returns nil only if the guest said Bye. An
// event Start gives the guest as much time more as until returns for it.
func (e Emulator) Boot(ctx context.Context, m Machine, until func(job string) time.Duration, fn func(wire.Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	args := append(e.machine[:len(e.machine):len(e.machine)], []string{
		"-accel", "tcg", "-smp", "2", "-m", fmt.Sprint(m.MemoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none",
		"-chardev", "file,id=console,path=" + m.Console, "-serial", "chardev:console",
		"-chardev", "stdio,id=wire,signal=off", "-serial", "chardev:wire",
		"-kernel", m.Kernel, "-initrd", m.Initramfs,
		// An oops must end the test, and the end of PID 1 too; -no-reboot makes qemu end when the guest resets.
		"-append", strings.Join([]string{"console=" + e.console, "loglevel=5 oops=panic panic=-1", e.cmdline, m.Cmdline}, " "),
	}...)
	if m.Disk != "" {
		args = append(args, "-drive", "file="+m.Disk+",format=raw,if=virtio,cache=writeback")
	}
	cmd := exec.CommandContext(ctx, e.argv[0], append(e.argv[1:len(e.argv):len(e.argv)], args...)...)
	cmd.Env = append(os.Environ(), e.env...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	stdin, err := cmd.StdinPipe() // never written to; at its end qemu would close the port
	if err != nil {
		return err
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said := watch(stdout, m.Grace, until, fn, func() { cancel(ErrHang) })
	err = cmd.Wait()
	switch {
	case said:
		return nil
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case panicked(m.Console):
		return ErrPanic
	case err != nil:
		return &EmulatorError{err, strings.TrimSpace(complaints.String())}
	}
	return ErrEnded
}

// watch passes on events until the wire ends, calls late when nothing came in time, and tells whether the guest said Bye.
func watch(r io.Reader, grace time.Duration, until func(string) time.Duration, fn func(wire.Event), late func()) (said bool) {
	timer := time.AfterFunc(grace, late)
	defer timer.Stop()
	_ = wire.Read(r, func(e wire.Event) { // it ends when qemu does
		switch e.Kind {
		case wire.Start:
			timer.Reset(until(e.Text) + grace)
		case wire.Exit, wire.Hello, wire.Bye:
			timer.Reset(grace)
		}
		said = said || e.Kind == wire.Bye
		fn(e)
	})
	return said
}

// panicked tells whether a console's log has the kernel's last words.
func panicked(console string) bool {
	data, err := os.ReadFile(console)
	return err == nil && strings.Contains(string(data), "Kernel panic")
}
