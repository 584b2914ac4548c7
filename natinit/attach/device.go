package attach

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// What our filters of a clsact qdisc are known by: they come first, and no other agent has this handle.
const (
	filterPriority = 1
	filterHandle   = 0x6668 // "fh"
)

// Device is a network device of the calling thread's network namespace. The hooks of its programs are of the types
// ebpf.AttachTCXIngress and ebpf.AttachTCXEgress, also where the kernel has no tcx.
type Device struct {
	Name  string
	Index int
	TCX   bool // the kernel has it (Linux 6.6): kernel.FeatureTCX
}

func (d Device) String() string { return "device " + d.Name }

func (d Device) links() bool { return d.TCX }

func (d Device) by(link bool) By {
	if link {
		return ByTCX
	}
	return ByClsact
}

// pinName has the device's index: a name may have a dot, which a bpffs refuses.
func (d Device) pinName(h bpf.Hook) string { return fmt.Sprintf("%s_%d", h.Name, d.Index) }

// linked knows a link whose device is gone by the index 0.
func (d Device) linked(h bpf.Hook, info *link.Info) (atHook, here bool, note string) {
	tcx := info.TCX()
	if tcx == nil || ebpf.AttachType(tcx.AttachType) != h.Attach {
		return false, false, ""
	}
	return true, int(tcx.Ifindex) == d.Index, "the former link's device is gone"
}

func (d Device) open() (site, error) {
	_, err := netlink.LinkByIndex(d.Index)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	return openDevice{d}, nil
}

type openDevice struct{ Device }

func (d openDevice) close() error { return nil }

// conflict is found out by attach: links have no places to be taken.
func (d openDevice) conflict(bpf.Hook, string) string { return "" }

func (d openDevice) programs(h bpf.Hook) ([]ebpf.ProgramID, error) {
	var ids []ebpf.ProgramID
	if d.TCX {
		found, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: h.Attach})
		if err != nil {
			return nil, err
		}
		for _, p := range found.Programs {
			ids = append(ids, p.ID)
		}
	}
	filters, err := d.filters(h)
	for _, f := range filters {
		ids = append(ids, ebpf.ProgramID(f.Id))
	}
	return ids, err
}

// link puts a program before all others.
func (d openDevice) link(h bpf.Hook, p *ebpf.Program) (link.Link, error) {
	return link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: p, Attach: h.Attach, Anchor: link.Head()})
}

// attach makes a filter, or exchanges the program of ours in one step.
func (d openDevice) attach(h bpf.Hook, p *ebpf.Program, former []*ebpf.Program) (undo func() error, err error) {
	filters, err := d.filters(h)
	if err != nil {
		return nil, err
	}
	undo = func() error { return d.detach(h, p) }
	for _, f := range filters {
		if !isOurFilter(f) {
			continue
		}
		i := slices.IndexFunc(former, func(p *ebpf.Program) bool { id, err := programID(p); return err == nil && int(id) == f.Id })
		if i < 0 {
			return nil, fmt.Errorf("program %d %q has our place among the filters of %s: %w", f.Id, f.Name, d, ErrConflict)
		}
		undo = func() error { return d.replaceFilter(h, former[i]) }
	}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) { // it stays: filters of others may come to use it
		return nil, fmt.Errorf("add clsact qdisc to %s: %w", d, err)
	}
	return undo, d.replaceFilter(h, p)
}

func (d openDevice) replaceFilter(h bpf.Hook, p *ebpf.Program) error {
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Index, Parent: d.parent(h), Priority: filterPriority, Handle: filterHandle, Protocol: unix.ETH_P_ALL},
		Fd:          p.FD(), Name: h.Program(), DirectAction: true,
	})
}

func (d openDevice) detach(h bpf.Hook, p *ebpf.Program) error {
	id, err := programID(p)
	if err != nil {
		return err
	}
	filters, err := d.filters(h)
	for _, f := range filters {
		if isOurFilter(f) && f.Id == int(id) {
			err = errors.Join(err, netlink.FilterDel(f))
		}
	}
	if err != nil {
		return fmt.Errorf("detach program of %s: %w", h.Name, err)
	}
	return nil
}

func isOurFilter(f *netlink.BpfFilter) bool {
	return f.Priority == filterPriority && f.Handle == filterHandle
}

// filters are the programs that are attached as filters at a hook.
func (d openDevice) filters(h bpf.Hook) (found []*netlink.BpfFilter, err error) {
	dev, err := netlink.LinkByIndex(d.Index)
	if err != nil {
		return nil, err
	}
	all, err := netlink.FilterList(dev, d.parent(h))
	for _, f := range all {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Id != 0 {
			found = append(found, b)
		}
	}
	return found, err
}

func (d openDevice) parent(h bpf.Hook) uint32 {
	if h.Attach == ebpf.AttachTCXEgress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}
