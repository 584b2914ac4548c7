package privileges_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts/ns"
)

func TestRefused(t *testing.T) {
	if err := privileges.Refused("open", "/x", unix.ENOENT, unix.CAP_SYS_ADMIN); errors.Is(err, privileges.ErrRefused) || !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	if err := privileges.Refused("open", "/x", unix.EPERM); !errors.Is(err, privileges.ErrRefused) || !strings.Contains(err.Error(), "security module") {
		t.Error(err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if err := ns.Do(func() error {
		header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		err := privileges.Refused("setns", "/x", unix.EPERM, unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT)
		if !errors.Is(err, privileges.ErrRefused) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "lacks CAP_SYS_ADMIN and CAP_SYS_CHROOT") {
			t.Error(err)
		}
		if err := privileges.MayDetach(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN is missing") {
			t.Error(err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
