package devices

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// replyTimeout is how long the kernel has for a part of an answer: it may wait for the lock of all devices.
	replyTimeout = 10 * time.Second
	// A list that changes while it is read is read again, at most so often in all, after these pauses.
	dumpTries, dumpPause = 5, 10 * time.Millisecond
)

// errUnstable says that a list changed each time it was read: parts of it may be missing.
var errUnstable = errors.New("it changes while it is read")

// reader reads the state of the network namespace in which it was made. Not for concurrent use.
type reader struct {
	sockets map[int]*nl.SocketHandle
}

// newReader makes a reader of the calling thread's network namespace.
func newReader() (*reader, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	timeout := unix.NsecToTimeval(replyTimeout.Nanoseconds())
	s.SetReceiveTimeout(&timeout)
	s.SetSendTimeout(&timeout)
	return &reader{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (r *reader) close() { r.sockets[unix.NETLINK_ROUTE].Close() }

// dump asks for a list and calls each for its messages; begin is called first, and again for each further try. The error
// matches errUnstable where no try was undisturbed; the last one's messages have been handed over then.
func (r *reader) dump(what string, ask, answer uint16, header []byte, begin func(), each func(message []byte) error) error {
	for try := 1; ; try++ {
		begin()
		req := nl.NewNetlinkRequest(int(ask), unix.NLM_F_DUMP)
		req.Sockets = r.sockets
		req.AddRawData(header)
		var wrong error
		err := req.ExecuteIter(unix.NETLINK_ROUTE, answer, func(m []byte) bool {
			wrong = each(m)
			return wrong == nil
		})
		switch {
		case wrong != nil:
			return wrong
		case err == nil:
			return nil
		case !errors.Is(err, nl.ErrDumpInterrupted):
			return fmt.Errorf("list %s: %w", what, err)
		case try == dumpTries:
			return fmt.Errorf("list %s: %w", what, errUnstable)
		}
		time.Sleep(time.Duration(try) * dumpPause)
	}
}

// family is the header of a request that selects nothing but a family.
func family(f uint8, size int) []byte {
	header := make([]byte, size)
	header[0] = f
	return header
}

func (r *reader) links() (list []Link, err error) {
	const skipStats = 8 // RTEXT_FILTER_SKIP_STATS
	header := append(family(unix.AF_UNSPEC, unix.SizeofIfInfomsg), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)).Serialize()...)
	err = r.dump("links", unix.RTM_GETLINK, unix.RTM_NEWLINK, header, func() { list = nil }, func(m []byte) error {
		l, err := parseLink(m)
		list = append(list, l)
		return err
	})
	return list, err
}

func (r *reader) addrs() (list []Addr, err error) {
	err = r.dump("addresses", unix.RTM_GETADDR, unix.RTM_NEWADDR, family(unix.AF_UNSPEC, unix.SizeofIfAddrmsg), func() { list = nil }, func(m []byte) error {
		a, err := parseAddr(m)
		if a.Local.IsValid() { // of IP
			list = append(list, a)
		}
		return err
	})
	return list, err
}

// tables are those that rules lead to, main first, then as the kernel asks them. The table of local addresses says
// nothing about devices.
func (r *reader) tables(links []Link) (list []uint32, err error) {
	add := func(t uint32) {
		if t != 0 && t != unix.RT_TABLE_LOCAL && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	begin := func() { list = []uint32{unix.RT_TABLE_MAIN} }
	err = r.dump("rules", unix.RTM_GETRULE, unix.RTM_NEWRULE, family(unix.AF_UNSPEC, unix.SizeofRtMsg), begin, func(m []byte) error {
		family, table, err := parseRuleTable(m)
		if family == unix.AF_INET || family == unix.AF_INET6 { // not those of multicast
			add(table)
		}
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) { // a kernel without policy routing
		add(unix.RT_TABLE_DEFAULT)
		err = nil
	}
	for _, l := range links { // one rule stands for the tables of all VRFs
		add(l.Table)
	}
	return list, err
}

// routes are the unicast routes of some tables. size is how many there may be. The list is of use also with an error that
// matches errUnstable.
func (r *reader) routes(tables []uint32, size int) ([]Route, error) {
	l := routeList{tables: tables, list: make([]Route, 0, size), hops: map[Hop]*Hop{}}
	var unstable error
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
		start, named := len(l.list), len(l.named)
		begin := func() { l.list, l.named = l.list[:start], l.named[:named] }
		err := r.dump("routes", unix.RTM_GETROUTE, unix.RTM_NEWROUTE, family(f, unix.SizeofRtMsg), begin, func(m []byte) error { return l.read(m, f) })
		if err != nil && !errors.Is(err, errUnstable) {
			return nil, err
		}
		unstable = errors.Join(unstable, err)
	}
	if len(l.named) > 0 {
		objects, err := r.nexthops()
		if err != nil && !errors.Is(err, errUnstable) {
			return nil, err
		}
		unstable = errors.Join(unstable, err)
		for i := range l.named {
			for h := range namedHops(objects, l.named[i].nexthop, l.named[i].hop) {
				l.add(&l.named[i], h)
			}
		}
	}
	return l.list, unstable
}

// routeList collects routes, which share their next hops.
type routeList struct {
	tables []uint32
	list   []Route
	hops   map[Hop]*Hop
	named  []routeMessage // routes that only say the id of their next hop
	m      routeMessage   // the one that is read
}

func (l *routeList) read(message []byte, family uint8) error {
	m := &l.m
	if err := parseRoute(message, m); err != nil {
		return err
	}
	// A kernel without IPv6 answers with all families.
	if m.family != family || m.kind != unix.RTN_UNICAST || m.cloned || !slices.Contains(l.tables, m.Table) {
		return nil
	}
	if m.nexthop != 0 && m.hop.Device == 0 && m.paths == nil {
		l.named = append(l.named, *m)
		return nil
	}
	for h := range m.nextHops() {
		l.add(m, h)
	}
	return nil
}

func (l *routeList) add(m *routeMessage, h Hop) {
	hop := l.hops[h]
	if hop == nil {
		hop = new(Hop)
		*hop = h
		l.hops[h] = hop
	}
	route := m.Route
	route.Hop = hop
	l.list = append(l.list, route)
}

// nexthops are the objects that routes may name instead of a device and a gateway: Linux 5.3; routes also say what is in
// them unless net.ipv4.nexthop_compat_mode is 0.
func (r *reader) nexthops() (map[uint32]nexthop, error) {
	all := map[uint32]nexthop{}
	err := r.dump("next hops", unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, make([]byte, 8), func() { clear(all) }, func(m []byte) error {
		n, err := parseNexthop(m)
		all[n.id] = n
		return err
	})
	return all, err
}

// namedHops are the next hops of an object; like has what is the route's own. A group has no groups in it.
func namedHops(objects map[uint32]nexthop, id uint32, like Hop) iter.Seq[Hop] {
	return func(yield func(Hop) bool) {
		object := objects[id]
		members := object.group
		if members == nil {
			members = []uint32{id}
		}
		for _, member := range members {
			n := objects[member]
			like.Device, like.Gateway = n.device, n.gateway
			if n.device != 0 && !yield(like) {
				return
			}
		}
	}
}
