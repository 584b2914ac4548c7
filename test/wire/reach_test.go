package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/firsthop/firsthop/bpf"
)

// watch captures at the clients and at all ways out of the node.
func (b *bench) watch(t testing.TB) {
	t.Helper()
	leaving := func(f frame) error { return leaving(f, b.masquerades.Load()) }
	sniff(t, "the client", b.client, "eth0", atClient)
	sniff(t, "the neighbour", b.neighbour, "eth0", atClient)
	sniff(t, "the way out of the node", b.router, "node", leaving)
	sniff(t, "the way out of the second uplink", b.router, "node1", leaving)
	sniff(t, "the way out of the tunnel", b.peer, "flannel.1", leaving)
}

// addresses are those by which a client asks for a kind's Service.
type addresses func(f family, k kind) []netip.AddrPort

func everyAddress(f family, k kind) []netip.AddrPort { return f.frontends(k) }

// byFirstUplink are the addresses that packets of all clients come to by the device by which answers leave.
func byFirstUplink(f family, k kind) []netip.AddrPort { return f.frontends(k)[:2] }

// bySecondUplink is the address that the neighbour asks by the second uplink.
func bySecondUplink(f family, k kind) []netip.AddrPort { return f.frontends(k)[2:] }

// tryAll has a client use every Service by some of its addresses, at once, over TCP and UDP.
func (b *bench) tryAll(m machine, tos addresses) error {
	var all errgroup.Group
	for _, f := range families {
		for _, k := range kinds {
			all.Go(func() error {
				for _, to := range tos(f, k) {
					if err := b.tryTCP(f, m, k, to); err != nil {
						return fmt.Errorf("%s, %s, TCP to %s: %w", f.name, k, to, err)
					}
					for _, size := range []int{100, long} {
						if size == long && f.name == v6.name && k == overlay {
							continue // too large for the tunnel: see TestUDPFragmentsBothWays
						}
						if err := b.tryUDP(f, m, k, to, 3, size); err != nil {
							return fmt.Errorf("%s, %s, UDP of %d bytes to %s: %w", f.name, k, size, to, err)
						}
					}
				}
				return nil
			})
		}
	}
	return all.Wait()
}

func TestClientsReachBackends(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for name, m := range map[string]machine{"a client behind a router": b.client, "a client of the segment": b.neighbour} {
		t.Run(name, func(t *testing.T) { must(t, b.tryAll(m, everyAddress)) })
	}
	if dropped := b.dropped(t, bpf.CountRedirect); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
}

// Pods of other nodes whose CNI keeps their addresses, and those nodes, are clients from outside, by whichever uplink they
// come; also where the backend is one of their own.
func TestPodsOfOtherNodesAreClients(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.offloads(t, false, setTxChecksum, setRxChecksum) // of what comes out of a tunnel, the kernel has a complete sum then
	for name, gateways := range map[string][]netip.Addr{
		"by the segment":       {v4.node, v6.node},
		"by the second uplink": {v4.nodeSecond, v6.nodeSecond},
		"by the tunnel":        {v4.nodeOverlay, v6.nodeOverlay},
	} {
		t.Run(name, func(t *testing.T) {
			for i, f := range families {
				route(t, b.peer, bits(f.vip), gateways[i].String())
			}
			must(t, eachKind(func(f family, k kind, to netip.AddrPort) error {
				return errors.Join(b.tryTCP(f, b.peer, k, to), b.tryUDP(f, b.peer, k, to, 3, 1000))
			}))
		})
	}
	if dropped := b.dropped(t, bpf.CountRedirect); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
}
