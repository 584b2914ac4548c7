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

// ipvsDevice has all cluster IPs on it where kube-proxy runs, or ran, with IPVS.
const ipvsDevice = "kube-ipvs0"

// hostAddrs are the addresses of all interfaces of this network namespace, with
// the lengths of their nets, sorted.
func hostAddrs() ([]netip.Prefix, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	ipvs := -1
	if link, err := netlink.LinkByName(ipvsDevice); err == nil {
		ipvs = link.Attrs().Index
	}
	var out []netip.Prefix
	for _, a := range list {
		if a.LinkIndex == ipvs {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), nil
}

// FollowHostAddrs tells of the addresses, and of each change, until ctx ends.
func FollowHostAddrs(ctx context.Context, log *slog.Logger, tell func([]netip.Prefix)) {
	var last []netip.Prefix
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
