package watch

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// addrSettle is how long changes of addresses are gathered: one interface that
// comes brings several.
const addrSettle = 100 * time.Millisecond

// addrPause bounds how often the host's addresses are subscribed to: a subscription
// that ends at once, as where netlink has no buffers left, must not become a loop.
const addrPause = time.Second

// proxyDevices have all cluster IPs on them where kube-proxy with IPVS or kube-router serves Services, or did so once.
var proxyDevices = []string{"kube-ipvs0", "kube-dummy-if"}

// HostAddr is an address of an interface, with the length of its net.
type HostAddr struct {
	netip.Prefix
	Device string // name of the interface; empty: it has gone meanwhile
}

// hostAddrs are the addresses of all interfaces of this network namespace, sorted.
func hostAddrs() ([]HostAddr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	devices, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the host's interfaces: %w", err)
	}
	names := make(map[int]string, len(devices))
	for _, d := range devices {
		names[d.Attrs().Index] = d.Attrs().Name
	}
	var out []HostAddr
	for _, a := range list {
		name := names[a.LinkIndex]
		if slices.Contains(proxyDevices, name) {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
			bits, _ := a.Mask.Size()
			out = append(out, HostAddr{netip.PrefixFrom(addr.Unmap(), bits), name})
		}
	}
	slices.SortFunc(out, func(a, b HostAddr) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), cmp.Compare(a.Device, b.Device))
	})
	return slices.Compact(out), nil
}

// FollowHostAddrs tells of the addresses, and of each change, until ctx ends.
func FollowHostAddrs(ctx context.Context, log *slog.Logger, tell func([]HostAddr)) {
	var last []HostAddr
	look := func() {
		addrs, err := hostAddrs()
		for range 10 { // a list that changes while it is read
			if err == nil || ctx.Err() != nil {
				break
			}
			time.Sleep(addrSettle)
			addrs, err = hostAddrs()
		}
		if err != nil {
			log.Error("node ports stay on the addresses that were known", "err", err)
		} else if last == nil || !slices.Equal(addrs, last) {
			last = addrs
			tell(addrs)
		}
	}
	for ctx.Err() == nil {
		updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
		err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{})
		look()
		if err != nil {
			log.Error("the host's addresses can't be followed; they are read again and again", "err", err)
			updates = nil
		}
		began := time.Now()
		followUpdates(ctx, updates, look)
		close(done)
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(began.Add(addrPause))):
		}
	}
}

// followUpdates looks after updates until ctx or the subscription ends, and
// every half minute in any case: the kernel drops messages that nobody reads in time.
func followUpdates(ctx context.Context, updates <-chan netlink.AddrUpdate, look func()) {
	var settle <-chan time.Time
	again := time.NewTicker(30 * time.Second)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-updates:
			if !ok {
				return
			}
			if settle == nil {
				settle = time.After(addrSettle)
			}
		case <-settle:
			settle = nil
			look()
		case <-again.C:
			look()
		}
	}
}
