package wire

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/firsthop/firsthop/bpf"
)

// watch captures at the clients and at all ways out of the node.
func (b *bench) watch(t testing.TB) {
	t.Helper()
	sniff(t, "the client", b.client, "eth0", atClient)
	sniff(t, "the neighbour", b.neighbour, "eth0", atClient)
	sniff(t, "the way out of the node", b.router, "node", leaving)
	sniff(t, "the way out of the second uplink", b.router, "node1", leaving)
	sniff(t, "the way out of the tunnel", b.peer, "flannel.1", leaving)
}

// tryAll has a client use every Service by all its addresses, at once, over TCP and UDP.
func (b *bench) tryAll(m machine) error {
	var all errgroup.Group
	for _, f := range families {
		for _, k := range kinds {
			all.Go(func() error {
				for _, to := range f.frontends(k) {
					if err := f.tryTCP(m, k, to); err != nil {
						return fmt.Errorf("%s, %s, TCP to %s: %w", f.name, k, to, err)
					}
					if err := f.tryUDP(m, k, to, 3, 100); err != nil {
						return fmt.Errorf("%s, %s, UDP to %s: %w", f.name, k, to, err)
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
		t.Run(name, func(t *testing.T) { must(t, b.tryAll(m)) })
	}
	if dropped := b.dropped(t, bpf.CountRedirect); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
}
