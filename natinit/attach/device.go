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
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Device is a network device of the calling thread's network namespace. The hooks of its programs are of the types
// ebpf.AttachTCXIngress and ebpf.AttachTCXEgress, also where the kernel has no tcx.
type Device struct {
	Name  string
	Index int
	TCX   bool // it is to be used, as the kernel has it (Linux 6.6): kernel.FeatureTCX
}

// ErrRenamed says that a device has another name by now: it was renamed, or another device has its index. Nothing was
// changed: look at the namespace's devices again.
var ErrRenamed = errors.New("the device has another name by now")

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

func (d Device) kind() instance.Kind { return instance.KindDevice }

// newRunsFirst: tcx runs before all filters, a link of ours is made at the head of tcx, and a filter of ours that takes
// the place of a link runs after it for the instant until Commit: see doc.go.
func (d Device) newRunsFirst() bool { return true }

// linked knows a link whose device is gone by the index 0. One with this index may be at another device: one that was
// moved to another network namespace keeps its links and its index. What counts is what the kernel lists here.
func (d Device) linked(h bpf.Hook, info *link.Info) (atHook, here bool, note string) {
	tcx := info.TCX()
	switch {
	case tcx == nil || ebpf.AttachType(tcx.AttachType) != h.Attach:
		return false, false, ""
	case tcx.Ifindex == 0:
		return true, false, "the former link's device is gone"
	case int(tcx.Ifindex) == d.Index:
		at, err := queryTCX(d.Index, h)
		if err == nil && slices.ContainsFunc(at, func(p placed) bool { return p.link == info.ID }) {
			return true, true, ""
		}
	}
	return true, false, "the former link is at another device"
}

func (d Device) open(cfg Config) (site, error) {
	dev, err := netlink.LinkByIndex(d.Index)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	kinds := cfg.qdiscs
	if kinds == nil {
		if kinds, err = listQdiscs(); err != nil {
			return nil, fmt.Errorf("open %s: %w", d, err)
		}
	}
	return &openDevice{Device: d, attrs: dev.Attrs(), qdisc: kinds[d.Index], journal: cfg.Journal, proc: cfg.Proc}, nil
}

type openDevice struct {
	Device
	attrs   *netlink.LinkAttrs
	qdisc   string // the kind of the one that has filters; "": there is none
	journal *instance.Journal
	proc    string
}

func (d *openDevice) close() error { return nil }

// renamed reports whether another name is known than the device has now.
func (d *openDevice) renamed() error {
	if d.attrs.Name == d.Name {
		return nil
	}
	return fmt.Errorf("open %s, index %d: it is %s: %w", d, d.Index, d.attrs.Name, ErrRenamed)
}

func (d *openDevice) gone() bool {
	_, err := netlink.LinkByIndex(d.Index)
	_, gone := errors.AsType[netlink.LinkNotFoundError](err)
	return gone
}

// conflict: links have no places to be taken.
func (d *openDevice) conflict(h bpf.Hook, _ string) string {
	if d.TCX {
		return ""
	}
	if d.qdisc == qdiscIngress {
		return fmt.Sprintf("%s has a qdisc of kind ingress, in the place of clsact, which has no filters at egress", d)
	}
	filters, err := d.filters(h)
	if err != nil {
		return "" // the attach will say so
	}
	for _, f := range filters {
		if f.blocks() {
			return fmt.Sprintf("%s of %s has the priority of ours, which takes filters of one kind and protocol only", f, d)
		}
	}
	return ""
}

func (d *openDevice) programs(h bpf.Hook) ([]placed, error) {
	found, err := queryTCX(d.Index, h)
	if err != nil {
		return nil, err
	}
	filters, err := d.filters(h)
	for _, f := range filters {
		found = append(found, placed{id: f.program, filter: f})
	}
	return found, err
}

// queryTries bounds how often a list of programs is read that grows meanwhile.
const queryTries = 10

// queryTCX lists the programs of tcx at a hook, in the order in which they run; none where the kernel has no tcx. It is
// asked even where tcx is not to be used: a former run may have used it.
func queryTCX(index int, h bpf.Hook) (found []placed, err error) {
	var res *link.QueryResult
	for range queryTries {
		res, err = link.QueryPrograms(link.QueryOptions{Target: index, Attach: h.Attach})
		if !errors.Is(err, unix.ENOSPC) {
			break
		}
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range res.Programs {
		id, _ := p.LinkID()
		found = append(found, placed{id: p.ID, link: id})
	}
	return found, nil
}

// eachLink has none to visit: programs says by which link each is attached.
func (d *openDevice) eachLink(objects.Links, func(link.Link) (bool, error)) error { return nil }

// keeps: it has to be attached in the way that is wanted now, so that a change of the way takes effect.
func (d *openDevice) keeps(h bpf.Hook, id ebpf.ProgramID) (bool, error) {
	at, err := d.programs(h)
	return slices.ContainsFunc(at, func(p placed) bool {
		return p.id == id && (d.TCX && p.link != 0 || !d.TCX && p.filter.isOurs())
	}), err
}

// link puts a program before all others.
func (d *openDevice) link(h bpf.Hook, p *ebpf.Program) (link.Link, error) {
	return link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: p, Attach: h.Attach, Anchor: link.Head()})
}

// attach exchanges the program of our filter in one step, or adds a filter where there is none, or where ours has to
// become the first.
func (d *openDevice) attach(h bpf.Hook, p *ebpf.Program, former []*ebpf.Program, first bool) (undo func() error, err error) {
	if err := d.ensureClsact(); err != nil {
		return nil, err
	}
	if what := d.conflict(h, d.proc); what != "" {
		return nil, fmt.Errorf("%s: have its owner choose another, or remove it: %w", what, ErrConflict)
	}
	filters, err := d.filters(h)
	if err != nil {
		return nil, err
	}
	var ours []*filter
	for _, f := range filters {
		switch {
		case !f.isOurs():
		case programOf(f, former) == nil:
			return nil, fmt.Errorf("program %d of %s has our place at %s: %w", f.program, f, d, ErrConflict)
		default:
			ours = append(ours, f)
		}
	}
	undo = func() error { return d.detach(h, p) }
	switch {
	case len(ours) == 0:
		return undo, d.addFilter(h, p, filterHandles[0])
	case !first || filters[0] == ours[0]:
		before := programOf(ours[0], former)
		return func() error { return d.replaceFilter(h, before, ours[0].handle) }, d.replaceFilter(h, p, ours[0].handle)
	}
	for _, f := range ours[1:] { // it runs second only until Commit, and its handle is needed
		if err := d.deleteFilter(h, f); err != nil {
			return nil, err
		}
	}
	free := filterHandles[0]
	if ours[0].handle == free {
		free = filterHandles[1]
	}
	return undo, d.addFilter(h, p, free)
}

// programOf finds the program of a filter; nil: it is none of these.
func programOf(f *filter, among []*ebpf.Program) *ebpf.Program {
	for _, p := range among {
		if id, err := programID(p); err == nil && id == f.program {
			return p
		}
	}
	return nil
}

func (d *openDevice) filterAttrs(h bpf.Hook, handle uint32) netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: d.Index, Parent: parentOf(h), Priority: filterPriority, Handle: handle, Protocol: unix.ETH_P_ALL}
}

func (d *openDevice) filterWith(h bpf.Hook, p *ebpf.Program, handle uint32) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: d.filterAttrs(h, handle), Fd: p.FD(), Name: h.Program(), DirectAction: true}
}

// addFilter adds the first filter of our priority. One with the handle that came since is not replaced.
func (d *openDevice) addFilter(h bpf.Hook, p *ebpf.Program, handle uint32) error {
	err := netlink.FilterAdd(d.filterWith(h, p, handle))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s shares its filters with other devices, by a block: have its owner make its clsact qdisc without one: %w: %w", d, ErrConflict, err)
	case err != nil:
		return fmt.Errorf("add a filter to %s: %w", d, err)
	}
	return nil
}

func (d *openDevice) replaceFilter(h bpf.Hook, p *ebpf.Program, handle uint32) error {
	if err := netlink.FilterReplace(d.filterWith(h, p, handle)); err != nil {
		return fmt.Errorf("replace the filter of %s: %w", d, err)
	}
	return nil
}

func (d *openDevice) deleteFilter(h bpf.Hook, f *filter) error {
	err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: d.filterAttrs(h, f.handle), Fd: -1})
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || d.gone() {
		return nil
	}
	return fmt.Errorf("delete the filter of %s: %w", d, err)
}

func (d *openDevice) detach(h bpf.Hook, p *ebpf.Program) error {
	id, err := programID(p)
	if err != nil {
		return err
	}
	at, err := d.programs(h)
	for _, place := range at {
		switch {
		case place.id != id:
		case place.link != 0:
			err = errors.Join(err, detachByID(place.link))
		case place.filter.isOurs():
			err = errors.Join(err, d.deleteFilter(h, place.filter))
		}
	}
	if err != nil && !d.gone() {
		return fmt.Errorf("detach program of %s: %w", h.Name, err)
	}
	return nil
}

func detachByID(id link.ID) error {
	l, err := link.NewFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %d: %w", id, err)
	}
	return errors.Join(detach(l), l.Close())
}

// filters are those of a hook, in the order in which they run.
func (d *openDevice) filters(h bpf.Hook) ([]*filter, error) {
	if d.qdisc == "" || d.qdisc == qdiscIngress && h.Attach == ebpf.AttachTCXEgress {
		return nil, nil // what the kernel lists at the egress of ingress is at ingress
	}
	return listFilters(d.Index, parentOf(h))
}

func parentOf(h bpf.Hook) uint32 {
	if h.Attach == ebpf.AttachTCXEgress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}
