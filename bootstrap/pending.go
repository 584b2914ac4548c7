package bootstrap

import (
	"errors"
	"os"

	"github.com/firsthop/firsthop/natinit/instance"
)

// recordPending has in the journal, from the first seed to the first proof, that what is
// attached was never shown to work. A run that is killed in between leaves the
// entry; if the next one can't prove it either, all of it is removed.
func (s *stage) recordPending() error {
	if _, err := os.Lstat(s.pins().Dir); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return s.volatile.Record(instance.KindPending, s.pins().Dir, "")
}

// proven removes the entry.
func (s *stage) proven() error { return s.volatile.Forget(instance.KindPending, s.pins().Dir) }

// dropPending removes what is pending and could not be proven.
func (s *stage) dropPending() error {
	if s.volatile == nil || s.bpffs.Path == "" || s.bpffs.Err() != nil || !s.volatile.Has(instance.KindPending, s.pins().Dir) {
		return nil
	}
	if err := s.attachment().Remove(); err != nil {
		return err
	}
	return s.proven()
}

// Attachment is what this instance has in the kernel.
func (s *stage) attachment() Attachment {
	return Attachment{BPFFS: s.bpffs, Cgroup: s.cgroup, Journal: s.volatile, Links: s.kernelConfig().Links(), Log: s.Log}
}
