package attach

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// nextSuffix marks a pin that is about to take its place by a rename. Not
// ".new": bpffs refuses names with a dot (kernel/bpf/inode.c, bpf_lookup).
const nextSuffix = "_new"

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
func ownLink(pin string, t Target, h bpf.Hook) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, nil, openPin(pin, "link", err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read info of pinned link: %w", err), l.Close())
	}
	if atHook, _, _ := t.linked(h, info); !atHook {
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
func removeLink(pin string, t Target, h bpf.Hook) error {
	l, _, err := ownLink(pin, t, h)
	if l == nil {
		return err
	}
	defer l.Close()
	if err := detach(l); err != nil {
		return err // what is attached keeps its pin, by which the next run finds it
	}
	return removePin(pin)
}

// removeProg unpins a program of ours; with a site, it is detached there.
func removeProg(pin string, h bpf.Hook, s site) error {
	p, err := ownProg(pin, h)
	if p == nil {
		return err
	}
	defer p.Close()
	if s != nil {
		if err := s.detach(h, p); err != nil {
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

// repin pins an open link or program at a place that something else may have by now, in
// one step. The library's Pin does nothing for an object that was opened there.
func repin(object any, pin string) error {
	open, ok := object.(interface{ FD() int })
	if !ok {
		return fmt.Errorf("pin %s: no file descriptor", pin)
	}
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
	}{pathname: unsafe.Pointer(path), fd: uint32(open.FD())}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, bpfObjPin, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return fmt.Errorf("pin %s: %w", next, errno)
	}
	return os.Rename(next, pin)
}

// linkedProgram is the program of a hook's pinned link; 0 if there is no link of ours.
func linkedProgram(pin string, t Target, h bpf.Hook) (ebpf.ProgramID, error) {
	l, info, err := ownLink(pin, t, h)
	if l == nil {
		return 0, err
	}
	return info.Program, l.Close()
}

// pinnedProgram is the program that is pinned for a hook; 0 if there is none.
func pinnedProgram(pin string, h bpf.Hook) (ebpf.ProgramID, error) {
	p, err := ownProg(pin, h)
	if p == nil {
		return 0, err
	}
	defer p.Close()
	return programID(p)
}

// PinnedPrograms opens the programs that the pins of a cgroup's hooks lead to.
func PinnedPrograms(pins bpf.Pins) (progs []*ebpf.Program, err error) {
	for _, h := range bpf.Hooks() {
		var p *ebpf.Program
		id, err := linkedProgram(Attachment{Cgroup{}, h, ByLink}.pin(pins), Cgroup{}, h)
		switch {
		case err == nil && id != 0:
			p, err = ebpf.NewProgramFromID(id)
		case err == nil:
			p, err = ownProg(Attachment{Cgroup{}, h, ByProg}.pin(pins), h)
		}
		if err != nil {
			CloseAll(progs)
			return nil, fmt.Errorf("open pinned program of %s: %w", h.Name, err)
		}
		if p != nil {
			progs = append(progs, p)
		}
	}
	return progs, nil
}

// CloseAll closes programs.
func CloseAll(progs []*ebpf.Program) {
	for _, p := range progs {
		p.Close()
	}
}

// CheckPins says what Attach would stumble over at the pins of a cgroup's hooks, and
// changes nothing: its error matches bpf.ErrForeign.
func CheckPins(pins bpf.Pins, hooks []bpf.Hook) error { return checkPins(pins, Cgroup{}, hooks) }

func checkPins(pins bpf.Pins, t Target, hooks []bpf.Hook) error {
	var errs []error
	for _, h := range hooks {
		_, err := linkedProgram(Attachment{t, h, t.by(true)}.pin(pins), t, h)
		_, progErr := pinnedProgram(Attachment{t, h, t.by(false)}.pin(pins), h)
		errs = append(errs, err, progErr)
	}
	return errors.Join(errs...)
}

// PinPaths are the paths at which something of ours may be pinned for the hooks of a target.
func PinPaths(pins bpf.Pins, t Target, hooks []bpf.Hook) (paths []string) {
	for _, link := range []bool{true, false} {
		for _, h := range hooks {
			pin := Attachment{t, h, t.by(link)}.pin(pins)
			paths = append(paths, pin, pin+nextSuffix)
		}
	}
	return paths
}
