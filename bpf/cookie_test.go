package bpf

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/firsthop/firsthop/test/lab"
)

func TestCookieProgramKeepsToItsKernels(t *testing.T) {
	spec, err := loadCookie()
	if err != nil {
		t.Fatal(err)
	}
	since57 := map[asm.BuiltinFunc]bool{asm.FnGetNetnsCookie: true, asm.FnSkStorageGet: true}
	for _, p := range spec.Programs {
		if p.Type != ebpf.CGroupSockAddr || p.AttachType != ebpf.AttachCGroupInet4Bind {
			t.Errorf("%s is a %v at %v", p.Name, p.Type, p.AttachType)
		}
		for it := p.Instructions.Iterate(); it.Next(); {
			checkInstruction(t, it)
			if fn := asm.BuiltinFunc(it.Ins.Constant); it.Ins.IsBuiltinCall() && !since57[fn] {
				t.Errorf("calls %v, which Linux 5.7 may lack", fn)
			}
		}
	}
}

// That it tells cookies is tested where this process is in a cgroup of its own: natinit.
func TestCookiesSeeTheirCgroupAlone(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	c, err := OpenCookies(l.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if cookie, err := c.Cookie(); !errors.Is(err, ErrNotReached) {
		t.Errorf("from outside of the cgroup: %d, %v", cookie, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenCookies(l.Cgroup + "/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("at a cgroup that isn't there: %v", err)
	}
	if _, err := OpenCookies(t.TempDir()); err == nil {
		t.Error("attached to a directory that is no cgroup")
	}
}
