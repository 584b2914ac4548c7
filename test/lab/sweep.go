package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// namePrefix starts the name of everything that a lab leaves visible on the machine.
const namePrefix = "fh-"

// ownPrefix starts the names of this process's labs. The start time tells a process from a later one with its id.
func ownPrefix() string {
	return fmt.Sprintf("%s%d-%s-", namePrefix, os.Getpid(), startTime(os.Getpid()))
}

// startTime returns when a process started, as clock ticks since boot in base 36; "" when there is no such process.
func startTime(pid int) string {
	started, _ := processStat(pid)
	return started
}

// isAlive tells whether the process with an id and a start time runs. One that has ended, and whose parent does not know
// yet, does not.
func isAlive(pid int, started string) bool {
	s, state := processStat(pid)
	return s == started && state != "Z" && state != "X"
}

// processStat returns a process's start time, as startTime does, and its state, a letter of proc_pid_stat(5).
func processStat(pid int) (started, state string) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	// The command's name is in brackets and may hold anything; start time is field 22, the 20th behind it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", ""
	}
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return "", ""
	}
	return strconv.FormatUint(ticks, 36), string(fields[0])
}

// labName takes the name of a lab apart: whether it is one, whether its process lives, and whether that is this one.
func labName(name string) (isLab, alive, own bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) < 3 {
		return false, false, false
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil || pid <= 0 {
		return false, false, false
	}
	return true, isAlive(pid, parts[1]), strings.HasPrefix(name, ownPrefix())
}

// footprint is what labs leave visible on the machine, by path.
type footprint struct {
	dirs, netns, cgroups []string
}

// footprints lists the labs' traces on the machine whose names satisfy keep.
func footprints(keep func(name string) bool) (f footprint, err error) {
	if f.dirs, err = matching(os.TempDir(), keep); err != nil {
		return f, err
	}
	if f.netns, err = matching(netnsDir, keep); err != nil {
		return f, err
	}
	roots, err := cgroupRoots()
	if err != nil {
		return f, err
	}
	for _, root := range roots {
		found, err := matching(root, keep)
		if err != nil {
			return f, err
		}
		f.cgroups = append(f.cgroups, found...)
	}
	return f, nil
}

func matching(dir string, keep func(name string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if keep(e.Name()) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// Sweep removes the labs of processes that are gone: processes in their cgroups, cgroups, mounts, namespaces and
// directories. It leaves the labs of living processes alone.
func Sweep() error {
	f, err := footprints(func(name string) bool {
		isLab, alive, _ := labName(name)
		return isLab && !alive
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range f.cgroups {
		errs = append(errs, removeCgroup(path))
	}
	for _, path := range f.netns {
		errs = append(errs, deleteNetns(filepath.Base(path)))
	}
	for _, path := range f.dirs {
		errs = append(errs, removeDir(path))
	}
	return errors.Join(errs...)
}
