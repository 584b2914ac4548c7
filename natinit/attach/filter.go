package attach

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What our filters of a clsact qdisc are known by. Their priority is the lowest number that there is (0 asks the kernel
// to choose one, from 49152 downwards). Among the filters of one priority the kernel runs first what was added last
// (net/sched/cls_bpf.c, cls_bpf_change); one that is replaced keeps its place. So ours has two handles: to become the
// first again it is added with the one that is free, and then removed from the other.
const filterPriority = 1

var filterHandles = [...]uint32{0x6668, 0x6669} // "fh", "fi"

// Kinds of the qdisc that has filters at ingress. That of kind ingress has none at egress: what is added there lands at
// ingress (net/sched/sch_ingress.c, ingress_tcf_block).
const (
	qdiscClsact  = "clsact"
	qdiscIngress = "ingress"
)

// filter is one filter of a hook.
type filter struct {
	kind     string // "bpf", "flower", "matchall", …
	priority uint16
	protocol uint16
	chain    uint32
	handle   uint32
	program  ebpf.ProgramID // of a filter of the kind bpf; 0: it has none that can be listed
	name     string         // that its owner gave it
	tag      string
}

// isOurs reports whether a filter has our place. Whether its program is ours is another question.
func (f *filter) isOurs() bool {
	return f != nil && f.chain == 0 && f.priority == filterPriority && (f.handle == filterHandles[0] || f.handle == filterHandles[1])
}

// blocks reports whether no filter of ours can be added, as the kernel has one kind and one protocol for each priority.
func (f *filter) blocks() bool {
	return f.chain == 0 && f.priority == filterPriority && (f.kind != "bpf" || f.protocol != unix.ETH_P_ALL)
}

func (f *filter) String() string {
	s := fmt.Sprintf("filter %s, priority %d, handle %#x", f.kind, f.priority, f.handle)
	if f.chain != 0 {
		s += fmt.Sprintf(", chain %d", f.chain)
	}
	if f.name != "" {
		s += fmt.Sprintf(", name %q", f.name)
	}
	return s
}

// dumpTries bounds how often a list is read again that changed while it was read.
const dumpTries = 5

// listFilters lists the filters of a device at one side of its clsact qdisc, in the order in which they run. The library's
// own list fails, or worse, on filters whose details it doesn't understand.
func listFilters(index int, parent uint32) (found []*filter, err error) {
	for range dumpTries {
		found = nil
		req := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: parent})
		var msgs [][]byte
		if msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER); errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		for _, m := range msgs {
			f, err := parseFilter(m)
			if err != nil {
				return nil, fmt.Errorf("list filters: %w", err)
			}
			if f != nil {
				found = append(found, f)
			}
		}
		return found, nil
	}
	return nil, fmt.Errorf("list filters: %w", err)
}

// parseFilter reads a message about a filter; nil: it is about a priority as a whole.
func parseFilter(m []byte) (*filter, error) {
	if len(m) < nl.SizeofTcMsg {
		return nil, errors.New("a message about a filter is too short")
	}
	msg := nl.DeserializeTcMsg(m)
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return nil, err
	}
	f := &filter{handle: msg.Handle}
	f.priority, f.protocol = netlink.MajorMinor(msg.Info)
	f.protocol = nl.Swap16(f.protocol)
	whole := true
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case nl.TCA_KIND:
			f.kind = text(a.Value)
		case nl.TCA_CHAIN:
			f.chain = number(a.Value)
		case nl.TCA_OPTIONS:
			whole = false
			if f.kind != "bpf" {
				continue
			}
			options, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, err
			}
			for _, o := range options {
				switch o.Attr.Type {
				case nl.TCA_BPF_NAME:
					f.name = text(o.Value)
				case nl.TCA_BPF_ID:
					f.program = ebpf.ProgramID(number(o.Value))
				case nl.TCA_BPF_TAG:
					f.tag = hex.EncodeToString(o.Value)
				}
			}
		}
	}
	if whole && f.handle == 0 {
		return nil, nil
	}
	return f, nil
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// listQdiscs says of which kind the qdisc at ingress of each device is, by the device's index.
func listQdiscs() (kinds map[int]string, err error) {
	for range dumpTries {
		kinds = map[int]string{}
		req := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL})
		var msgs [][]byte
		if msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC); errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list qdiscs: %w", err)
		}
		for _, m := range msgs {
			if len(m) < nl.SizeofTcMsg {
				continue
			}
			msg := nl.DeserializeTcMsg(m)
			if msg.Parent != netlink.HANDLE_CLSACT { // also that of ingress
				continue
			}
			attrs, err := nl.ParseRouteAttr(m[msg.Len():])
			if err != nil {
				return nil, fmt.Errorf("list qdiscs: %w", err)
			}
			for _, a := range attrs {
				if a.Attr.Type == nl.TCA_KIND {
					kinds[int(msg.Ifindex)] = text(a.Value)
				}
			}
		}
		return kinds, nil
	}
	return nil, fmt.Errorf("list qdiscs: %w", err)
}

func clsactOf(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}
