package lab

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leakDeadline is how long things may take to go: the kernel frees BPF objects and namespaces in the background.
	leakDeadline = 15 * time.Second
	// leakGrace is how long to wait before asking who else may hold a BPF object, which is expensive.
	leakGrace = time.Second
)

// Snapshot is what exists at one time: this process's labs and goroutines, and all BPF objects of the machine.
type Snapshot struct {
	labs       map[string]bool
	objects    map[bpfObject]bool
	goroutines map[string]string // id -> stack
}

// Take looks at the machine. It needs root.
func Take() (*Snapshot, error) {
	s := &Snapshot{goroutines: goroutines()}
	var err error
	if s.labs, err = ownTraces(); err != nil {
		return nil, err
	}
	s.objects, err = bpfObjects()
	return s, err
}

// Leaks waits until everything that came since the snapshot is gone, and describes what is still there when it has
// waited long enough. BPF objects that another process holds, or that are pinned or attached elsewhere, are not ours:
// other tests run at the same time. Goroutines are compared as well, so nothing else may run in this process.
func (s *Snapshot) Leaks() ([]string, error) {
	asked, err := bpfObjects()
	if err != nil {
		return nil, err
	}
	return poll(func(askOthers bool) ([]string, error) { return s.leaksNow(asked, askOthers) })
}

// ObjectLeaks is Leaks for BPF objects alone: it can be asked while a lab is in use.
func (s *Snapshot) ObjectLeaks() ([]string, error) {
	asked, err := bpfObjects()
	if err != nil {
		return nil, err
	}
	return poll(func(askOthers bool) ([]string, error) {
		objects, err := bpfObjects()
		if err != nil {
			return nil, err
		}
		return s.objectLeaks(objects, asked, askOthers)
	})
}

// poll asks for leaks until there are none or the deadline has passed.
func poll(leaksNow func(askOthers bool) ([]string, error)) ([]string, error) {
	start := time.Now()
	for {
		leaks, err := leaksNow(time.Since(start) > leakGrace)
		if err != nil || len(leaks) == 0 || time.Since(start) > leakDeadline {
			return leaks, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Snapshot) leaksNow(asked map[bpfObject]bool, askOthers bool) ([]string, error) {
	now, err := Take()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for trace := range now.labs {
		if !s.labs[trace] {
			leaks = append(leaks, trace)
		}
	}
	for id, stack := range now.goroutines {
		if _, ok := s.goroutines[id]; !ok {
			leaks = append(leaks, stack)
		}
	}
	objects, err := s.objectLeaks(now.objects, asked, askOthers)
	if err != nil {
		return nil, err
	}
	leaks = append(leaks, objects...)
	slices.Sort(leaks)
	return leaks, nil
}

// objectLeaks describes those of the objects that came since the snapshot and belong to no other process. It changes the
// map. What was not there yet when leaks were asked for is another process's, even if that is gone by now: the kernel frees
// a program's maps a while after the program.
func (s *Snapshot) objectLeaks(objects, asked map[bpfObject]bool, askOthers bool) ([]string, error) {
	maps.DeleteFunc(objects, func(o bpfObject, _ bool) bool { return s.objects[o] || !asked[o] })
	if len(objects) > 0 && askOthers {
		if err := forgetHeldElsewhere(objects); err != nil {
			return nil, err
		}
	}
	var leaks []string
	for o := range objects {
		leaks = append(leaks, o.describe())
	}
	slices.Sort(leaks)
	return leaks, nil
}

// VerifyNoLeaks fails the test if anything that it makes outlives it. Call it before New: cleanups run in reverse. The
// test must not be parallel.
func VerifyNoLeaks(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		return // no labs, and no right to list BPF objects
	}
	before, err := Take()
	if err != nil {
		t.Fatal("look for leaks before the test:", err)
	}
	t.Cleanup(func() {
		leaks, err := before.Leaks()
		if err != nil {
			t.Fatal("look for leaks after the test:", err)
		}
		for _, leak := range leaks {
			t.Errorf("still there after the test: %s", leak)
		}
	})
}

// RunMain is a TestMain that verifies that the whole package leaks nothing:
//
//	func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }
func RunMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	// Before Linux 5.11 map memory counts against it, and what a closed map held is given back late.
	// Where it isn't allowed (no CAP_SYS_RESOURCE) the kernel is newer, or the tests will say so.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	before, err := Take()
	if err != nil {
		fmt.Fprintln(os.Stderr, "look for leaks before the tests:", err)
		return 1
	}
	code := m.Run()
	leaks, err := before.Leaks()
	if err != nil {
		fmt.Fprintln(os.Stderr, "look for leaks after the tests:", err)
		return 1
	}
	for _, leak := range leaks {
		fmt.Fprintln(os.Stderr, "still there after the tests:", leak)
	}
	if code == 0 && len(leaks) > 0 {
		return 1
	}
	return code
}

// ownTraces lists what this process's labs leave visible: directories, mounts, namespaces, cgroups.
func ownTraces() (map[string]bool, error) { return tracesOf(ownPrefix()) }

// tracesOf lists what labs leave visible whose names have a prefix.
func tracesOf(prefix string) (map[string]bool, error) {
	f, err := footprints(func(name string) bool { return strings.HasPrefix(name, prefix) })
	if err != nil {
		return nil, err
	}
	traces := make(map[string]bool)
	for _, path := range slices.Concat(f.dirs, f.netns, f.cgroups) {
		traces[path] = true
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if strings.Contains(m.Mountpoint, "/"+prefix) {
			traces["mount of "+m.FSType+" on "+m.Mountpoint] = true
		}
	}
	return traces, nil
}

// TracesOf lists what labs of a process leave visible on the machine, whether it lives or not.
func TracesOf(pid int) ([]string, error) {
	traces, err := tracesOf(fmt.Sprintf("%s%d-", namePrefix, pid))
	return slices.Sorted(maps.Keys(traces)), err
}

// goroutines returns the stacks of all goroutines but those of the runtime and of the testing package itself.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	stacks := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		id, _, ok := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if !ok || isOfTheRuntime(stack) {
			continue
		}
		stacks[id] = strings.TrimSpace(stack)
	}
	return stacks
}

func isOfTheRuntime(stack string) bool {
	for _, s := range []string{
		"created by testing.",    // tests, fuzz workers, the alarm
		"created by os/signal.",  // lives forever after the first signal.Notify
		"created by runtime.",    // finalizers, cleanups
		"runtime/pprof.profile(", // go test -cpuprofile
	} {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}
