package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts/ns"
)

// ErrRefused says that the kernel doesn't let us find or enter a namespace. The
// error names the capability that is missing.
var ErrRefused = privileges.ErrRefused

// Visit calls fn in each of the namespaces, one after the other, until fn
// returns false or the context ends. Those that are gone by then are passed over.
//
// fn runs on a thread that is in the namespace and ends after the visit. What
// it opens there (sockets, not names) stays there; goroutines that it starts
// are not there. The error tells of namespaces that could not be entered; all
// others have been visited then.
func (c Config) Visit(ctx context.Context, list []Namespace, fn func(Namespace) (more bool)) error {
	if len(list) == 0 {
		return ctx.Err()
	}
	return ns.Do(func() error {
		var refused []error
		for _, found := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := c.enter(found)
			if gone(err) {
				continue
			}
			if err != nil {
				refused = append(refused, err)
				continue
			}
			if !fn(found) {
				break
			}
		}
		if len(refused) > 0 { // all for the same reason, as a rule
			return fmt.Errorf("enter network namespaces: %d of %d failed, the first: %w", len(refused), len(list), refused[0])
		}
		return nil
	})
}

// gone tells whether the error is that of a namespace which has ended, or of a
// name in a directory of network namespaces that is another kind's.
func gone(err error) bool {
	return slices.ContainsFunc([]error{fs.ErrNotExist, unix.ESRCH, unix.EINVAL}, func(e error) bool { return errors.Is(err, e) })
}

func (c Config) enter(found Namespace) error {
	name := fmt.Sprintf("net:[%d]", found.Inode)
	fd, err := c.open(found)
	if err != nil {
		return privileges.Refused("open", name, err, unix.CAP_SYS_PTRACE)
	}
	defer unix.Close(fd)
	return ns.Enter(fd, name, unix.CLONE_NEWNET)
}
