package sockets

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/netns"
)

// ErrNotSupported says that the kernel can't destroy sockets: built without
// CONFIG_INET_DIAG_DESTROY, or without diagnostics of the protocol. Clients with
// connected UDP sockets then stay with a backend that is gone until they connect anew.
var ErrNotSupported = errors.New("the kernel does not destroy sockets")

// Config says what Destroy works on.
type Config struct {
	// Reverse is bpf.MapReverse, and Peer bpf.MapPeer, which is used with TCP alone.
	Reverse, Peer *ebpf.Map
	// Batch: the kernel has batch operations (bpf.Features.Batch).
	Batch bool
	// TCP: connections over TCP are destroyed too, not left to their own timeouts.
	TCP bool
	// Namespaces says where network namespaces are found.
	Namespaces netns.Config
}

// Backend is one that is gone: no longer a *serving* endpoint. One that only
// terminates, and still serves, keeps its connections.
type Backend struct {
	Proto bpf.Proto
	Addr  netip.AddrPort
	// Index is the service that has lost it; 0: all that had it. TCP sockets
	// don't remember their service: over TCP, give only what no Service has any more.
	Index uint32
}

// Result is what Destroy did.
type Result struct {
	UDP, TCP   int // sockets destroyed
	Candidates int // sockets that the way back named; most of them are closed by then, or never were connected
	Looked     int // network namespaces whose sockets were listed
}

// Destroy destroys the connected sockets that were led to backends that are
// gone. It is called after the table's change. A socket that met the table
// before it, and is connected an instant after, is not found: Destroyer looks
// again for these.
//
// It needs CAP_SYS_ADMIN to enter namespaces, CAP_SYS_PTRACE to find them and
// CAP_NET_ADMIN to destroy; errors name the one that is missing. A socket that
// closes meanwhile is no error. Safe for concurrent use.
func Destroy(ctx context.Context, cfg Config, gone []Backend) (Result, error) {
	var res Result
	var hunts []*hunt
	add := func(p bpf.Proto, find func(w wanted) (map[victim]bool, error)) error {
		w := wantedOf(gone, p)
		if len(w) == 0 {
			return nil
		}
		found, err := find(w)
		if err == nil && len(found) > 0 {
			res.Candidates += len(found)
			hunts = append(hunts, newHunt(p, w, found))
		}
		return err
	}
	err := add(bpf.UDP, func(w wanted) (map[victim]bool, error) { return findUDP(cfg.Reverse, cfg.Batch, w) })
	if err == nil && cfg.TCP {
		err = add(bpf.TCP, func(w wanted) (map[victim]bool, error) { return findTCP(cfg.Peer, cfg.Batch, w) })
	}
	if err != nil || len(hunts) == 0 {
		return res, err
	}
	err = hunting(ctx, cfg.Namespaces, hunts, &res)
	for _, h := range hunts {
		if h.proto == bpf.TCP {
			res.TCP = h.destroyed
		} else {
			res.UDP = h.destroyed
		}
	}
	return res, err
}

// hunting looks for the victims in all network namespaces.
func hunting(ctx context.Context, where netns.Config, hunts []*hunt, res *Result) error {
	list, err := where.List()
	if err != nil {
		return err
	}
	var failed error
	visited := where.Visit(ctx, list, func(netns.Namespace) bool {
		looked, err := huntHere(hunts)
		if looked {
			res.Looked++
		}
		if failed == nil {
			failed = err
		}
		hopeless := errors.Is(err, ErrNotSupported) || errors.Is(err, unix.EPERM)
		return !hopeless && slices.ContainsFunc(hunts, func(h *hunt) bool { return len(h.cookies) > 0 })
	})
	return errors.Join(failed, visited)
}

// huntHere looks in the calling thread's network namespace.
func huntHere(hunts []*hunt) (looked bool, err error) {
	var d *diag
	for _, h := range hunts {
		families := h.families()
		if len(families) == 0 {
			continue
		}
		if d == nil {
			if d, err = openDiag(); err != nil {
				return false, err
			}
			defer d.Close()
		}
		if err := h.here(d, families); err != nil {
			return true, err
		}
	}
	return d != nil, nil
}

// hunt is the search for the sockets of one protocol.
type hunt struct {
	proto     bpf.Proto
	port      uint16 // that all the backends have; 0: they have several
	four      bool   // some of the backends are IPv4
	victims   map[victim]bool
	cookies   map[uint64]bool // those of victims that were not met yet
	destroyed int
}

func newHunt(p bpf.Proto, w wanted, victims map[victim]bool) *hunt {
	h := &hunt{proto: p, victims: victims, cookies: map[uint64]bool{}}
	ports := map[uint16]bool{}
	for at := range w {
		ports[at.Port()] = true
		h.four = h.four || at.Addr().Is4()
	}
	if len(ports) == 1 {
		h.port = slices.Collect(maps.Keys(ports))[0]
	}
	for v := range victims {
		h.cookies[v.cookie] = true
	}
	return h
}

// families are those of sockets that may be victims here. IPv6 sockets may be
// connected to v4-mapped addresses.
func (h *hunt) families() []uint8 {
	if len(h.cookies) == 0 {
		return nil
	}
	var list []uint8
	if h.four && inUse(h.proto, false) {
		list = append(list, unix.AF_INET)
	}
	if inUse(h.proto, true) {
		list = append(list, unix.AF_INET6)
	}
	return list
}

// maxRounds bounds how often a namespace's sockets are listed.
const maxRounds = 8

// here destroys the victims of a network namespace. The kernel looks a socket
// up by its addresses: of two UDP sockets that share all four, as SO_REUSEADDR
// lets them, it sees but one, and the other after that one is destroyed.
func (h *hunt) here(d *diag, families []uint8) error {
	for range maxRounds {
		var list []socket
		for _, family := range families {
			err := d.dump(family, h.proto, h.port, func(s socket) {
				if h.victims[victim{s.cookie(), s.to()}] {
					list = append(list, s)
				}
			})
			if err != nil {
				return err
			}
		}
		before, moved := h.destroyed, false
		for i := range list {
			delete(h.cookies, list[i].cookie())
			switch err := d.destroy(&list[i], h.proto); {
			case err == nil:
				h.destroyed++
			case errors.Is(err, errMoved):
				moved = true
			default:
				return err
			}
		}
		if !moved || h.destroyed == before {
			return nil
		}
	}
	return nil
}
