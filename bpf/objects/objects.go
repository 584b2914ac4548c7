// Package objects lists the BPF links of the machine by their ids. It is the only place that does: what kernels say
// at the end of a list, and instead of one, differs.
package objects

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNotSupported says that the kernel does not list links: below Linux 5.8.
var ErrNotSupported = errors.New("the kernel does not list BPF links")

// explain turns what a kernel says that does not know the command into ErrNotSupported. Once a kernel has given an id,
// it knows the command.
func explain(first bool, err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || first && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("list BPF links: %w: %w", ErrNotSupported, err)
	}
	return fmt.Errorf("list BPF links: %w", err)
}

// Iterator is what link.Iterator has.
type Iterator interface {
	Next() bool
	Take() link.Link
	Err() error
	Close()
}

// Links says how links are listed: it returns an iterator that starts behind an id, and a function that gives the id at
// which the iterator is. The zero value is the kernel.
type Links struct {
	from func(link.ID) (Iterator, func() link.ID)
}

// Unlisted are the links of a kernel that does not list them, as Linux 5.3 to 5.7 do not.
func Unlisted() Links {
	return Links{from: func(link.ID) (Iterator, func() link.ID) { return unlisted{}, func() link.ID { return 0 } }}
}

// unlisted ends as the iterator does there.
type unlisted struct{}

func (unlisted) Next() bool      { return false }
func (unlisted) Take() link.Link { return nil }
func (unlisted) Err() error      { return fmt.Errorf("get next link ID: %w", unix.EINVAL) }
func (unlisted) Close()          {}

func kernelLinks(after link.ID) (Iterator, func() link.ID) {
	it := &link.Iterator{ID: after}
	return it, func() link.ID { return it.ID }
}

// maxRetries bounds how often one link is asked for while its owner is still making it: the kernel has an id for it
// already, and says EAGAIN (kernel/bpf/syscall.c, bpf_link_by_id).
const maxRetries = 1000

// Each calls visit for every link. visit owns the link if it returns true, which ends the listing; otherwise Each closes
// it. ErrNotSupported: this kernel does not list links.
func (l Links) Each(visit func(link.ID, link.Link) (take bool, err error)) error {
	from := l.from
	if from == nil {
		from = kernelLinks
	}
	var last link.ID
	seen := false
	for tries := 0; ; tries++ {
		it, at := from(last)
		for it.Next() {
			last, seen, tries = at(), true, 0
			found := it.Take()
			take, err := visit(last, found)
			if take && err == nil {
				it.Close()
				return nil
			}
			if closeErr := found.Close(); err == nil && closeErr != nil {
				err = fmt.Errorf("close link %d: %w", last, closeErr)
			}
			if err != nil {
				it.Close()
				return err
			}
		}
		err := it.Err()
		it.Close()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EAGAIN) && tries < maxRetries:
			time.Sleep(time.Millisecond)
		default:
			return explain(!seen, err)
		}
	}
}

// IDs lists the ids of all links.
func (l Links) IDs() ([]link.ID, error) {
	var ids []link.ID
	err := l.Each(func(id link.ID, _ link.Link) (bool, error) {
		ids = append(ids, id)
		return false, nil
	})
	return ids, err
}
