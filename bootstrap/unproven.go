package bootstrap

import (
	"errors"
	"os"

	"github.com/firsthop/firsthop/natinit/instance"
)

// noteUnproven notes, from the first seed to the first proof, that what is
// attached was never shown to work. A run that is killed in between leaves the
// note; if the next one can't prove it either, all of it goes.
func (s *stage) noteUnproven() error {
	if _, err := os.Lstat(s.pins().Dir); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return s.volatile.Record(instance.KindUnproven, s.pins().Dir, "")
}

// proven removes the note.
func (s *stage) proven() error { return s.volatile.Forget(instance.KindUnproven, s.pins().Dir) }

// dropUnproven removes what was noted and could not be proven.
func (s *stage) dropUnproven() error {
	if s.volatile == nil || s.bpffs.Path == "" || s.bpffs.Err() != nil || !s.volatile.Has(instance.KindUnproven, s.pins().Dir) {
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
