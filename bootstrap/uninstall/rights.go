package uninstall

import (
	"errors"
	"slices"

	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/natinit/attach"
)

// mayRemove refuses a removal that could not be completed, before anything is
// touched.
func (u *uninstaller) mayRemove() error {
	inKernel := func(r Removal) bool { return r.Kind == "program" || r.Kind == "pin" || r.Kind == "mount" }
	if !slices.ContainsFunc(u.removals, inKernel) {
		return nil
	}
	if kernel.Inspect(u.HostRoot).Standing.UserNamespace {
		return errors.New("remove programs and pins: this is root of a user namespace only, whose capabilities do not count for that: run as the machine's root")
	}
	return attach.MayDetach()
}
