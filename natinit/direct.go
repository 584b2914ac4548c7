package natinit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// Direct opens connections to API servers that go where they say, past the
// programs: no Service that claims an API server's address can redirect them. A
// Service address that the table serves is the exception, as nothing else leads there.
//
// nil is a Direct without a table.
type Direct struct {
	maps   *bpf.Maps
	bypass bpf.Bypass

	// Withdraw takes a claim out of the table before it dials its address: programs of a
	// version that does not know of Bypass may be attached. The caller that sets it holds the table's lock.
	Withdraw bool

	mu     sync.Mutex
	claims []netip.AddrPort
}

// OpenDirect is for the table that is pinned. Without one, or without the rights
// to open it, connections are plain ones: at worst they go where those of any process go. Close it.
func OpenDirect(p bpf.Pins) (*Direct, error) {
	m, err := bpf.OpenMaps(p, false)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission), errors.Is(err, bpf.ErrForeign), errors.Is(err, bpf.ErrNewerLayout):
		return &Direct{}, nil
	case err != nil:
		return &Direct{}, err
	}
	return &Direct{maps: m, bypass: bpf.NewBypass(m)}, nil
}

// Close closes the table.
func (d *Direct) Close() error {
	if d == nil || d.maps == nil {
		return nil
	}
	return d.maps.Close()
}

// DialContext fits apiserver.Dial.
func (d *Direct) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1} // a probe's connection lives for milliseconds
	if a, err := netip.ParseAddrPort(address); err == nil && d != nil && d.maps != nil && !d.IsService(a) {
		dialer.Control = d.bypass.Control
		if err := d.noteClaim(a); err != nil {
			return nil, err
		}
	}
	return dialer.DialContext(ctx, network, address)
}

// IsService reports whether an address is a Service's own in the table.
func (d *Direct) IsService(a netip.AddrPort) bool {
	return d != nil && d.maps != nil && IsService(d.maps, a)
}

// noteClaim notes, and may withdraw, what the table has at the address of an API server.
func (d *Direct) noteClaim(a netip.AddrPort) error {
	k := bpf.FrontendKeyOf(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), bpf.TCP)
	if a.Addr().IsLoopback() {
		k = bpf.LoopbackKey(a.Addr().Is4(), a.Port(), bpf.TCP)
	}
	frontends := d.maps.Map(bpf.MapFrontend)
	var fe bpf.Frontend
	if err := frontends.Lookup(k, &fe); err != nil {
		return nil // mostly: there is none
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.claims, a) {
		d.claims = append(d.claims, a)
	}
	if !d.Withdraw {
		return nil
	}
	if err := frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("withdraw the frontend %v, which takes the connections to an API server: %w", k, err)
	}
	return nil
}

// Claims are the addresses that were dialled and that other Services had in the table.
func (d *Direct) Claims() []netip.AddrPort {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.claims)
}

// IsService reports whether an address is a Service's own in a table: one that the
// init stage has written, or a cluster IP. Those are marked as VIPs; an external IP, which may
// be anybody's address, is not.
func IsService(m *bpf.Maps, a netip.AddrPort) bool {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	var fe bpf.Frontend
	if err := m.Map(bpf.MapFrontend).Lookup(bpf.FrontendKeyOf(a, bpf.TCP), &fe); err != nil {
		return false
	}
	if nat.InitIndexes.Contains(fe.Index) {
		return true
	}
	return m.Map(bpf.MapFrontend).Lookup(bpf.VIPKeyOf(a.Addr()), &fe) == nil && fe.Flags&bpf.FrontendVIP != 0
}
