package mounts

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// What the kernel refuses to say of a cgroup is not that there is none.
func TestARefusedLookAtACgroupIsSaid(t *testing.T) {
	for _, errno := range []string{"EPERM", "ENOSYS"} {
		runStage(t, "handle refused", spec{clone: node, arg: errno})
	}
}

func stageHandleRefused(t *testing.T) {
	v2Root(t)
	startNode(t)
	errno, says := unix.EPERM, []string{"name_to_handle_at", "seccomp"}
	if stageArg() == "ENOSYS" {
		errno, says = unix.ENOSYS, []string{"name_to_handle_at", "CONFIG_FHANDLE"}
	}
	must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_NAME_TO_HANDLE_AT, Errno: errno}))
	g, err := FindCgroup2(Config{})
	if err == nil {
		err = g.Err()
	}
	if err == nil || errors.Is(err, ErrAbsent) || errors.Is(err, ErrRefused) != (errno == unix.EPERM) {
		t.Fatalf("%+v, %v", g, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("it does not say %q: %v", s, err)
		}
	}
}

// A seccomp profile may know fsopen and not move_mount, with which a mount is made that is recorded before it is there.
// Then, as on a kernel without either, mount(2) is the way, and what is recorded finds the mount again.
func TestABPFFSIsMountedWithoutMoveMount(t *testing.T) {
	for _, errno := range []string{"EPERM", "ENOSYS", "all"} {
		runStage(t, "move_mount refused", spec{clone: node, arg: errno})
	}
}

func stageMoveMountRefused(t *testing.T) {
	startNode(t)
	switch stageArg() {
	case "EPERM":
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.EPERM}))
	case "ENOSYS":
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.ENOSYS}))
	default:
		must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_FSOPEN, Errno: unix.ENOSYS}, lab.Refusal{Call: unix.SYS_MOVE_MOUNT, Errno: unix.ENOSYS}))
	}
	var recorded []string
	c := Config{Record: func(kind, target, identity string) error {
		if kind == RecordMount && target == DefaultBPFFS {
			recorded = append(recorded, identity)
		}
		return nil
	}}
	b, err := EnsureBPFFS(t.Context(), c)
	must(t, err)
	if b.State != BPFFSRight || countType(t, "/proc/self", "bpf", DefaultBPFFS) != 1 {
		t.Fatalf("%+v", b)
	}
	if len(recorded) == 0 || !b.Mount.is(recorded[len(recorded)-1]) {
		t.Fatalf("recorded %v, which is not %+v", recorded, b.Mount)
	}
	must(t, UnmountBPFFS(t.Context(), c, recorded[len(recorded)-1]))
	if countType(t, "/proc/self", "bpf", DefaultBPFFS) != 0 {
		t.Error("it is still mounted")
	}
}
