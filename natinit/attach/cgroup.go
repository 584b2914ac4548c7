package attach

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	// allowOverride is BPF_F_ALLOW_OVERRIDE: cgroups below may have a program in place of this one.
	allowOverride = 1 << 0
	// allowMulti is BPF_F_ALLOW_MULTI: other programs may be attached beside ours. Without it an attach would replace
	// another's flagless program silently.
	allowMulti = 1 << 1
)

// Cgroup is a directory of the v2 hierarchy; all processes in it and below are served.
type Cgroup struct {
	Path  string
	ID    uint64 // as links have it (mounts.CgroupID)
	Links bool   // the kernel has links that say what they are (Linux 5.8)
}

func (c Cgroup) String() string { return c.Path }

func (c Cgroup) links() bool { return c.Links }

func (c Cgroup) by(link bool) By {
	if link {
		return ByLink
	}
	return ByProg
}

func (c Cgroup) pinName(h bpf.Hook) string { return h.Name }

func (c Cgroup) kind() instance.Kind { return instance.KindProgram }

// newRunsFirst: programs of a cgroup run in the order in which they were attached.
func (c Cgroup) newRunsFirst() bool { return false }

func (c Cgroup) open(Config) (site, error) {
	dir, err := os.Open(c.Path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return openCgroup{c, dir}, nil
}

type openCgroup struct {
	Cgroup
	dir *os.File
}

func (c openCgroup) close() error { return c.dir.Close() }

func (c openCgroup) programs(h bpf.Hook) (found []placed, err error) {
	_, ids, err := queryFlags(c.dir, h.Attach)
	for _, id := range ids {
		found = append(found, placed{id: id})
	}
	return found, err
}

func (c openCgroup) eachLink(links objects.Links, visit func(link.Link) (bool, error)) error {
	return links.Each(func(_ link.ID, l link.Link) (bool, error) { return visit(l) })
}

func (c openCgroup) keeps(bpf.Hook, ebpf.ProgramID) (bool, error) { return true, nil }

// gone: a cgroup that is removed while it is open only has nothing in it any more.
func (c openCgroup) gone() bool { return false }

func (c openCgroup) cleanup() error { return nil }

func (c openCgroup) link(h bpf.Hook, p *ebpf.Program) (link.Link, error) {
	return link.AttachRawLink(link.RawLinkOptions{Target: int(c.dir.Fd()), Program: p, Attach: h.Attach})
}

// linked knows a link whose cgroup died by the id 0; one in another cgroup is from a run that took the wrong one for
// the root.
func (c Cgroup) linked(h bpf.Hook, info *link.Info) (atHook, here bool, note string) {
	cg := info.Cgroup()
	switch {
	case cg == nil || ebpf.AttachType(cg.AttachType) != h.Attach:
		return false, false, ""
	case cg.CgroupId == c.ID:
		return true, true, ""
	case cg.CgroupId == 0:
		return true, false, "the former link is detached, or its cgroup is gone"
	}
	return true, false, fmt.Sprintf("moved here from the cgroup with id %d", cg.CgroupId)
}

// attach has both programs attached for an instant, where there is a former one. That is harmless: the second sees an
// address that is a backend already.
func (c openCgroup) attach(h bpf.Hook, p *ebpf.Program, _ []*ebpf.Program, _ bool) (undo func() error, err error) {
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(c.dir.Fd()), Program: p, Attach: h.Attach, Flags: allowMulti})
	return func() error { return c.detach(h, p) }, err
}

func (c openCgroup) detach(h bpf.Hook, p *ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(c.dir.Fd()), Program: p, Attach: h.Attach})
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("detach program of %s: %w", h.Name, err)
}

// queryFlags is BPF_PROG_QUERY with the attach flags, which the library
// doesn't hand out.
func queryFlags(cgroup *os.File, attach ebpf.AttachType) (flags uint32, ids []ebpf.ProgramID, err error) {
	const bpfProgQuery = 16
	buf := make([]uint32, 64)
	var pin runtime.Pinner // attr hides the pointer from the runtime, which may move a buffer on the stack
	pin.Pin(&buf[0])
	defer pin.Unpin()
	attr := struct {
		targetFD    uint32
		attachType  uint32
		queryFlags  uint32
		attachFlags uint32
		progIDs     uint64
		progCount   uint32
		_           uint32
	}{targetFD: uint32(cgroup.Fd()), attachType: uint32(attach), progIDs: uint64(uintptr(unsafe.Pointer(&buf[0]))), progCount: uint32(len(buf))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, bpfProgQuery, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 && errno != unix.ENOSPC {
		return 0, nil, errno
	}
	for _, id := range buf[:min(int(attr.progCount), len(buf))] {
		ids = append(ids, ebpf.ProgramID(id))
	}
	return attr.attachFlags, ids, nil
}
