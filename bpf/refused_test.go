package bpf

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// proceed lets every socket pass.
func proceed() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
}

// withoutCapabilities runs fn on a thread that has none: as root in name only, as in a container that isn't privileged.
func withoutCapabilities(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal("drop capabilities:", err)
	}
}

func TestWithoutCapabilitiesNothingIsCreated(t *testing.T) {
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	before := pinTree(t, l.BPFFS)
	withoutCapabilities(t, func() {
		if _, err := EnsureMaps(pins, smallSizes); !errors.Is(err, unix.EPERM) {
			t.Errorf("without capabilities: %v, want EPERM", err)
		}
	})
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	m := mustEnsure(t, pins)
	withoutCapabilities(t, func() {
		if progs, err := LoadPrograms(m, Balancer{}, allFeatures()); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v were loaded without capabilities: %v, want EPERM", progs, err)
		}
	})
}

// An absurd size is what "no room" looks like without hurting the machine.
func TestNoRoomTakesBackWhatWasCreated(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	before := pinTree(t, l.BPFFS)
	_, err := EnsureMaps(pins, Sizes{Frontends: 64, Services: 32, Backends: 1 << 31})
	if err == nil {
		t.Fatal("a map of 2^31 backends was created")
	}
	if !strings.Contains(err.Error(), "2147483648") || !strings.Contains(err.Error(), MapBackend.Kernel()) {
		t.Errorf("%v: doesn't name the map and its size", err)
	}
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

func TestPinsNeedABPFFS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if _, err := EnsureMaps(PinsBelow(dir), smallSizes); err == nil {
		t.Fatal("maps were pinned in a directory of another file system")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if _, err := EnsureMaps(PinsBelow(dir+"/absent"), smallSizes); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("below a directory that isn't there: %v, want ErrNotExist", err)
	}
}
