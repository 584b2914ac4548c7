package bpf

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/test/lab"
)

// proceed lets every socket pass.
func proceed() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
}

// bpffsOfChild is the variable by which a child without capabilities knows
// that it is one, and on which bpffs it is to try.
const bpffsOfChild = "FIRSTHOP_TEST_BPFFS_WITHOUT_CAPABILITIES"

// withoutCapabilities runs the calling test again in a child that is root in
// name only, as in a container that isn't privileged: a thread of ours alone
// would not do, as the product uses several.
func withoutCapabilities(t *testing.T, bpffs string) {
	t.Helper()
	var out []byte
	err := ns.Do(func() error {
		for c := uintptr(0); ; c++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				break // past the last
			}
		}
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), bpffsOfChild+"="+bpffs)
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("without capabilities: %v\n%s", err, out)
	}
}

func TestEnsureMapsWithoutCapabilities(t *testing.T) {
	if bpffs := os.Getenv(bpffsOfChild); bpffs != "" {
		if _, err := EnsureMaps(PinsBelow(bpffs), smallSizes); !errors.Is(err, unix.EPERM) {
			t.Errorf("without capabilities: %v, want EPERM", err)
		}
		return
	}
	l := lab.New(t)
	before := pinTree(t, l.BPFFS)
	withoutCapabilities(t, l.BPFFS)
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// An absurd size is what "no room" looks like without hurting the machine.
func TestEnsureMapsTakesBackWhatItCreated(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	pins := PinsBelow(l.BPFFS)
	before := pinTree(t, l.BPFFS)
	_, err := EnsureMaps(pins, Sizes{Frontends: 64, Services: 32, Backends: 1 << 31})
	if err == nil {
		t.Fatal("a map of 2^31 backends was created")
	}
	if !strings.Contains(err.Error(), "2147483648") || !strings.Contains(err.Error(), MapBackend.Info().Kernel) {
		t.Errorf("%v: doesn't name the map and its size", err)
	}
	if after := pinTree(t, l.BPFFS); !sameTree(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

func TestEnsureMapsNeedsABPFFS(t *testing.T) {
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
