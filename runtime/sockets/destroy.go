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
// connected UDP sockets then stay with a backend that is gone until they connect again.
var ErrNotSupported = errors.New("the kernel does not destroy sockets")

// Config says what Destroy works on.
type Config struct {
	// Reverse is bpf.MapUDPSockRevNat, and Peer bpf.MapSockRevNat, which is used with TCP alone.
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
	var searches []*search
	add := func(p bpf.Proto, find func(w lost) (map[target]bool, error)) error {
		w := lostOf(gone, p)
		if len(w) == 0 {
			return nil
		}
		found, err := find(w)
		if err == nil && len(found) > 0 {
			res.Candidates += len(found)
			searches = append(searches, newSearch(p, w, found))
		}
		return err
	}
	err := add(bpf.UDP, func(w lost) (map[target]bool, error) { return findUDP(cfg.Reverse, cfg.Batch, w) })
	if err == nil && cfg.TCP {
		err = add(bpf.TCP, func(w lost) (map[target]bool, error) { return findTCP(cfg.Peer, cfg.Batch, w) })
	}
	if err != nil || len(searches) == 0 {
		return res, err
	}
	err = searchAll(ctx, cfg.Namespaces, searches, &res)
	for _, h := range searches {
		if h.proto == bpf.TCP {
			res.TCP = h.destroyed
		} else {
			res.UDP = h.destroyed
		}
	}
	return res, err
}

// searchAll looks for the targets in all network namespaces.
func searchAll(ctx context.Context, where netns.Config, searches []*search, res *Result) error {
	list, err := where.List()
	if err != nil {
		return err
	}
	var failed error
	visited := where.Visit(ctx, list, func(netns.Namespace) bool {
		looked := false
		for _, s := range searches {
			families := s.families()
			looked = looked || len(families) > 0
			if err = s.here(families); err != nil {
				break
			}
		}
		if looked {
			res.Looked++
		}
		if failed == nil {
			failed = err
		}
		hopeless := errors.Is(err, ErrNotSupported) || errors.Is(err, unix.EPERM)
		return !hopeless && slices.ContainsFunc(searches, func(s *search) bool { return len(s.cookies) > 0 })
	})
	return errors.Join(failed, visited)
}

// search is for the sockets of one protocol.
type search struct {
	proto     bpf.Proto
	port      uint16 // that all the backends have; 0: they have several
	four      bool   // some of the backends are IPv4
	targets   map[target]bool
	cookies   map[uint64]bool // those of targets that were not met yet
	destroyed int
}

func newSearch(p bpf.Proto, w lost, targets map[target]bool) *search {
	s := &search{proto: p, targets: targets, cookies: map[uint64]bool{}}
	ports := map[uint16]bool{}
	for at := range w {
		ports[at.Port()] = true
		s.four = s.four || at.Addr().Is4()
	}
	if len(ports) == 1 {
		s.port = slices.Collect(maps.Keys(ports))[0]
	}
	for v := range targets {
		s.cookies[v.cookie] = true
	}
	return s
}

// families are those of sockets that may be targets here. IPv6 sockets may be
// connected to v4-mapped addresses.
func (s *search) families() []uint8 {
	if len(s.cookies) == 0 {
		return nil
	}
	var list []uint8
	if s.four && inUse(s.proto, false) {
		list = append(list, unix.AF_INET)
	}
	if inUse(s.proto, true) {
		list = append(list, unix.AF_INET6)
	}
	return list
}

// maxRounds bounds how often a namespace's sockets are listed.
const maxRounds = 8

// here destroys the targets in the calling thread's network namespace. The kernel looks a socket
// up by its addresses: of two UDP sockets that share all four, as SO_REUSEADDR
// lets them, it sees but one, and the other after that one is destroyed.
func (s *search) here(families []uint8) error {
	for range maxRounds {
		var list []socket
		for _, family := range families {
			err := dump(family, s.proto, s.port, func(found socket) {
				if s.targets[target{found.cookie(), found.remote()}] {
					list = append(list, found)
				}
			})
			if err != nil {
				return err
			}
		}
		before, moved := s.destroyed, false
		for i := range list {
			delete(s.cookies, list[i].cookie())
			switch err := destroy(list[i], s.proto); {
			case err == nil:
				s.destroyed++
			case errors.Is(err, errMoved):
				moved = true
			default:
				return err
			}
		}
		if !moved || s.destroyed == before {
			return nil
		}
	}
	return nil
}
