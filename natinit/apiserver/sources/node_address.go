package sources

import (
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// defaultAddress gives the address that an API server advertises when nobody
// tells it one: the first global one on the link of the default route, IPv4
// before IPv6 (k8s.io/apimachinery, util/net.ChooseHostInterface; kubeadm uses
// the same). In a network namespace that is not the host's there is none.
func defaultAddress(root string) (netip.Addr, bool) {
	if !hostNetwork(root) {
		return netip.Addr{}, false
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if r.Dst != nil && (len(r.Dst.IP) == 0 || !r.Dst.IP.IsUnspecified() || !isAll(r)) {
				continue
			}
			if a, ok := linkAddress(r.LinkIndex, family); ok {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func isAll(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

func linkAddress(index, family int) (netip.Addr, bool) {
	link, err := netlink.LinkByIndex(index)
	if err != nil || link.Attrs().Flags&unix.IFF_UP == 0 {
		return netip.Addr{}, false
	}
	addrs, err := netlink.AddrList(link, family)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ok && ip.IsGlobalUnicast() && apiserver.RefuseAddr(ip) == "" {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// hostNetwork reports whether this process is in the host's network namespace,
// as far as the host's /proc can tell.
func hostNetwork(root string) bool {
	of, err := os.Stat(filepath.Join("/", root, "proc/1/ns/net"))
	if err != nil {
		return true
	}
	own, err := os.Stat("/proc/self/ns/net")
	return err == nil && os.SameFile(of, own)
}
