// Command init is PID 1 of a test machine. It mounts what a machine has, loads the modules that its manifest names, runs
// the jobs one after the other, tells the host over a serial port what they print and how they end, and switches the
// machine off. It needs no other program: it is all of user space, but for the tests.
//
// With a system on a disk (wire.Manifest.System) it only starts that system's PID 1, and a unit of it runs `init jobs`.
//
// Called as go, it is the go command as far as tests need it where no compiler is: `go build … -o PATH PACKAGE` copies
// the program that the host has built of that package.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := goBuild(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "go:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == wire.SystemJobs {
		if err := jobsOfSystem(); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: for PID 1 of a test machine (make test-vm)")
		os.Exit(64)
	}
	if err := boot(); err != nil {
		fmt.Println("init:", err) // on the console, whose log is kept
	}
	unix.Sync()
	// Without ACPI the machine may only halt; then the host ends it, having seen Bye.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func boot() error {
	m, err := readManifest(wire.ManifestPath)
	if err != nil {
		return err
	}
	if m.System != "" {
		return startSystem(m)
	}
	return runJobs(m, prepare(m))
}

// runJobs runs all jobs and tells the host.
func runJobs(m wire.Manifest, notes []error) error {
	port, err := openPort(m.Port)
	if err != nil {
		return err
	}
	defer port.Close()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	if err := wire.Write(port, wire.Hello, unix.ByteSliceToString(uts.Release[:])); err != nil {
		return err
	}
	for _, note := range notes {
		if err := wire.Write(port, wire.Note, note.Error()); err != nil {
			return err
		}
	}
	for _, job := range m.Jobs {
		if err := wire.Write(port, wire.Start, job.Name); err != nil {
			return err
		}
		start := time.Now()
		outcome := run(job, port)
		outcome.Millis = time.Since(start).Milliseconds()
		if err := wire.WriteOutcome(port, outcome); err != nil {
			return err
		}
	}
	if err := wire.Write(port, wire.Bye, ""); err != nil {
		return err
	}
	return drain(int(port.Fd()))
}

// drain waits until all that was written to a terminal is out. A signal ends the wait early, and Go's runtime sends itself
// some: a machine that stopped here never told the host that it was done.
func drain(fd int) error {
	for {
		if err := unix.IoctlSetInt(fd, unix.TCSBRK, 1); err != unix.EINTR {
			return err
		}
	}
}

func readManifest(path string) (m wire.Manifest, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("parse %s: %w", path, err)
	}
	return m, nil
}

// openPort opens a serial port that passes on bytes as they are.
func openPort(path string) (*os.File, error) {
	port, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(port.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	return port, nil
}
