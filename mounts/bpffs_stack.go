package mounts

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts/ns"
)

const maxEntries = 32

// lookIntoStack looks into each mount of a stack and judges it by what it hides.
//
// No path leads to a hidden mount. But in a mount namespace of our own, a copy
// of the host's that shares nothing with it, we can take the upper mounts off
// and look; the copy is gone when the thread ends.
func lookIntoStack(h *Host, b *BPFFS) {
	err := h.inHostThread(false, func(v view) error { return readLayers(v.open(b.HostPath), b.Stack) })
	hidden := b.Stack[1]
	if err != nil {
		b.warn("mount %d (%s) is hidden below mount %d at %s, and could not be looked into: %v", hidden.ID, hidden.Type, b.Stack[0].ID, b.HostPath, err)
		return
	}
	b.judgeStack()
}

// judgeStack says which of the mounts holds pins.
func (b *BPFFS) judgeStack() {
	for _, l := range b.Stack[1:] {
		if l.Type != "bpf" {
			continue
		}
		if b.State == BPFFSWrongType {
			b.warn("the bpffs that is hidden at %s, mount %d, holds %s", b.HostPath, l.ID, listed(l.Entries))
			continue
		}
		if slices.Contains(l.Entries, bpf.DirName) {
			b.is(BPFFSStacked, ErrStacked, "mount %d on top (holding %s) hides mount %d, which holds our pins (%s); take the upper one off with: umount %s",
				b.Stack[0].ID, listed(b.Stack[0].Entries), l.ID, listed(l.Entries), b.HostPath)
			return
		}
		b.warn("bpffs is mounted twice at %s: mount %d on top holds %s and hides mount %d, which holds %s; when nothing uses the upper one, take it off with: umount %s",
			b.HostPath, b.Stack[0].ID, listed(b.Stack[0].Entries), l.ID, listed(l.Entries), b.HostPath)
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// readLayers fills in the entries of each layer, in a private mount namespace.
func readLayers(path string, stack []Layer) error {
	if err := ns.UnshareMounts(); err != nil { // or the unmounts below would propagate to the host
		return err
	}
	for i := range stack {
		if i > 0 {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("look below mount %d: %w", stack[i-1].ID, err)
			}
		}
		names, err := entries(path, maxEntries)
		if err != nil {
			return err
		}
		slices.Sort(names)
		stack[i].Entries = names
	}
	return nil
}
