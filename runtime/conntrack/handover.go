package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

const (
	// followPause is between looks at the flows that are left to the stack.
	followPause = 10 * time.Second
	// dumpTries is how often netfilter's flows are listed, where they change so that some may have been missed.
	dumpTries = 3
)

// Handover leaves flows to the stack that another service proxy began through netfilter, as kube-proxy does: their packets must
// reach the backend that they have had, with the address that it knows. TCP needs none of this, as only a SYN begins a flow.
//
// Its methods ask netfilter of the calling thread's network namespace, which is the host's.
type Handover struct {
	Log   *slog.Logger
	Table Table
	// Loaded reports whether netfilter's connection tracking is there (sysctl.Settings.ConntrackLoaded). Otherwise it is not
	// asked: that would load it.
	Loaded func() bool
}

// LeaveTranslated finds the flows of UDP and SCTP that netfilter has, that asked for a frontend, and that it has translated, and leaves
// them to the stack. It returns how many were not left before. Call it before the programs are attached.
func (h *Handover) LeaveTranslated(frontends func(netip.AddrPort, bpf.Proto) bool) (n int, err error) {
	if !h.Loaded() {
		return 0, nil
	}
	var failed error
	leave := func(f *conntrack.Flow) bool {
		key, value, ok := translated(f)
		if !ok || !frontends(key.Destination(), key.Proto) {
			return true
		}
		value.Seen = Now()
		switch err := h.Table.Map.Update(&key, &value, ebpf.UpdateNoExist); {
		case err == nil:
			n++
		case !errors.Is(err, ebpf.ErrKeyExist): // left already, or ours
			failed = fmt.Errorf("leave a flow to the stack: %w", err)
		}
		return failed == nil
	}
	for range dumpTries {
		if err = eachTranslated(leave); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return n, errors.Join(failed, err)
}

// Follow takes flows back that netfilter has forgotten, or leads elsewhere by now, until none is left or ctx ends.
//
// It asks for each flow by itself. Netfilter's events don't tell: since Linux 5.19, which brought nf_conntrack_events=2, there is
// none of the end of a connection that began before somebody listened (2794cdb0b97b).
func (h *Handover) Follow(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begun := time.Now()
		left, err := h.Check()
		if err == nil && left == 0 {
			return
		}
		if err != nil && !warned {
			h.Log.Warn("flows that another service proxy began are left to the stack for longer than needed", "err", err)
		}
		warned = err != nil
		timer.Reset(max(followPause, share*time.Since(begun)))
	}
}

// Check takes flows back that netfilter has forgotten, or leads elsewhere by now, and returns how many are left to the stack.
func (h *Handover) Check() (left int, err error) {
	var stack []Entry
	err = h.Table.read(func(e Entry) bool {
		if e.Flow.Flags&bpf.FlowStack != 0 {
			stack = append(stack, e)
		}
		return true
	})
	if err != nil || len(stack) == 0 {
		return len(stack), err
	}
	has := func(Entry) (bool, error) { return false, nil }
	if h.Loaded() {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return len(stack), fmt.Errorf("ask netfilter: %w", err)
		}
		defer c.Close()
		has = func(e Entry) (bool, error) { return hasTranslated(c, e) }
	}
	for _, e := range stack {
		is, err := has(e)
		if err != nil {
			return len(stack), err
		}
		if is {
			left++
		} else if _, err := h.Table.remove(&group{Entry: e}); err != nil {
			return len(stack), err
		}
	}
	return left, nil
}

// hasTranslated reports whether netfilter has the flow of an entry, and translates it to the same backend.
func hasTranslated(c *conntrack.Conn, e Entry) (bool, error) {
	from, to := e.Key.Source(), e.Key.Destination()
	f, err := c.Get(conntrack.NewFlow(uint8(e.Key.Proto), 0, from.Addr(), to.Addr(), from.Port(), to.Port(), 0, 0))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask netfilter for a flow: %w", err)
	}
	key, value, ok := translated(&f)
	return ok && key == e.Key && value.AddrPort() == e.Flow.AddrPort(), nil
}

// translated is the entry that leaves a flow of netfilter to the stack; ok: it is of a kind that needs one, and netfilter has
// changed its destination.
func translated(f *conntrack.Flow) (key bpf.FlowKey, value bpf.Flow, ok bool) {
	proto := bpf.Proto(f.TupleOrig.Proto.Protocol)
	if proto != bpf.UDP && proto != bpf.SCTP || f.Zone != 0 { // a zone is not what packets come with
		return key, value, false
	}
	client := netip.AddrPortFrom(f.TupleOrig.IP.SourceAddress, f.TupleOrig.Proto.SourcePort)
	asked := netip.AddrPortFrom(f.TupleOrig.IP.DestinationAddress, f.TupleOrig.Proto.DestinationPort)
	backend := netip.AddrPortFrom(f.TupleReply.IP.SourceAddress, f.TupleReply.Proto.SourcePort)
	key = bpf.FlowKeyOf(client, asked, proto, bpf.WayIn)
	value = bpf.Flow{Addr: bpf.AddressOf(backend.Addr()), Port: bpf.PortOf(backend.Port()), Flags: bpf.FlowStack}
	return key, value, backend != asked
}

// eachTranslated calls each for netfilter's flows with a changed destination until it returns false; before Linux 5.15 for all
// flows. It holds one at a time: 200,000 take 225 MiB as a list.
func eachTranslated(each func(*conntrack.Flow) bool) error {
	const ctnetlink, statusMask = unix.NFNL_SUBSYS_CTNETLINK << 8, 26 // CTA_STATUS_MASK
	req := nl.NewNetlinkRequest(ctnetlink|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	changed := binary.BigEndian.AppendUint32(nil, uint32(conntrack.StatusDstNAT))
	req.AddData(nl.NewRtAttr(nl.CTA_STATUS, changed))
	req.AddData(nl.NewRtAttr(statusMask, changed))
	var failed error
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		var ev conntrack.Event
		if err := ev.Unmarshal(mdlayher.Message{Header: mdlayher.Header{Type: ctnetlink}, Data: msg}); err != nil {
			failed = fmt.Errorf("read a flow of netfilter: %w", err) // the others are worth to be read
			return true
		}
		return ev.Flow == nil || each(ev.Flow)
	})
	if failed == nil && err != nil {
		failed = fmt.Errorf("list netfilter's flows: %w", err)
	}
	return failed
}
