package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// What is pinned at the place of a hook is ours if its program has the hook's
// name. Its maps say nothing here: the table that it was loaded for may be gone.

// notOurs is the error for anything else, which is never touched.
func notOurs(pin, what string) error {
	return fmt.Errorf("%s %s: move it away if nothing needs it: %w", pin, what, bpf.ErrForeign)
}

// openPin sorts the errors of opening a pin: absent is none, and a lack of
// rights says nothing about what is there.
func openPin(pin, want string, err error) error {
	st, statErr := os.Lstat(pin)
	switch {
	case statErr == nil && st.IsDir(): // for which the kernel says EACCES, too
		return notOurs(pin, "is a directory")
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("open %s: %w", pin, err)
	}
	return notOurs(pin, fmt.Sprintf("doesn't hold a BPF %s (%s)", want, err))
}

// ownLink opens the link that is pinned for a hook; nil if nothing is there.
func ownLink(pin string, h bpf.Hook) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, nil, openPin(pin, "link", err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read info of pinned link: %w", err), l.Close())
	}
	if cg := info.Cgroup(); cg == nil || ebpf.AttachType(cg.AttachType) != h.Attach {
		l.Close()
		return nil, nil, notOurs(pin, "is a link of another kind")
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open program of pinned link: %w", err), l.Close())
	}
	defer p.Close()
	if err := ownName(pin, p, h); err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, info, nil
}

// ownProg opens the program that is pinned for a hook; nil if nothing is there.
func ownProg(pin string, h bpf.Hook) (*ebpf.Program, error) {
	p, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return nil, openPin(pin, "program", err)
	}
	if err := ownName(pin, p, h); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func ownName(pin string, p *ebpf.Program, h bpf.Hook) error {
	info, err := p.Info()
	if err != nil {
		return fmt.Errorf("read program info: %w", err)
	}
	if info.Name != h.Program() {
		id, _ := info.ID()
		return notOurs(pin, fmt.Sprintf("holds program %d %q", id, info.Name))
	}
	return nil
}

// removeLink detaches and unpins a link of ours.
func removeLink(pin string, h bpf.Hook) error {
	l, _, err := ownLink(pin, h)
	if l == nil {
		return err
	}
	defer l.Close()
	if err := detach(l); err != nil {
		return err // what is attached keeps its pin, by which the next run finds it
	}
	return removePin(pin)
}

// removeProg unpins a program of ours; with a cgroup, it is detached there.
func removeProg(pin string, h bpf.Hook, cgroup *os.File) error {
	p, err := ownProg(pin, h)
	if p == nil {
		return err
	}
	defer p.Close()
	if cgroup != nil {
		if err := detachProg(cgroup, h, p); err != nil {
			return err // as in removeLink
		}
	}
	return removePin(pin)
}

func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// repin pins an open object at a place that something else may have by now, in
// one step. The library's Pin does nothing for an object that was opened there.
func repin(fd int, pin string) error {
	next := pin + nextSuffix
	if err := removePin(next); err != nil {
		return err
	}
	const bpfObjPin = 6
	path, err := unix.BytePtrFromString(next)
	if err != nil {
		return err
	}
	attr := struct {
		pathname unsafe.Pointer
		fd       uint32
		flags    uint32
	}{pathname: unsafe.Pointer(path), fd: uint32(fd)}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, bpfObjPin, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return fmt.Errorf("pin %s: %w", next, errno)
	}
	return os.Rename(next, pin)
}

// PinnedPrograms opens the programs that the pins of hooks lead to.
func PinnedPrograms(pins bpf.Pins) ([]*ebpf.Program, error) {
	var progs []*ebpf.Program
	for _, h := range bpf.Hooks() {
		p, err := hookProgram(pins, h)
		if err != nil {
			CloseAll(progs)
			return nil, err
		}
		if p != nil {
			progs = append(progs, p)
		}
	}
	return progs, nil
}

// hookProgram opens the program that a hook's pin leads to; nil: there is none.
func hookProgram(pins bpf.Pins, h bpf.Hook) (*ebpf.Program, error) {
	l, info, err := ownLink(filepath.Join(pins.Links(), h.Name), h)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return ownProg(filepath.Join(pins.Progs(), h.Name), h)
	}
	defer l.Close()
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil, fmt.Errorf("open program of pinned link: %w", err)
	}
	return p, nil
}

func CloseAll(progs []*ebpf.Program) {
	for _, p := range progs {
		p.Close()
	}
}
