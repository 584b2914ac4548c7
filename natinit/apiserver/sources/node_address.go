package sources

import (
	"net/netip"
	"path/filepath"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// defaultAddress gives the address that an API server advertises when nobody
// tells it one, chosen by what it and kubeadm choose with. In a network
// namespace that is not the host's there is none.
func defaultAddress(root string) (netip.Addr, bool) {
	if !hostNetwork(root) {
		return netip.Addr{}, false
	}
	ip, err := utilnet.ChooseHostInterface()
	if err != nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	return a, ok && apiserver.RefuseAddr(a) == ""
}

// hostNetwork reports whether this process is in the host's network namespace,
// as far as the host's /proc can tell.
func hostNetwork(root string) bool {
	return !ns.Differ(filepath.Join("/", root, "proc/1/ns/net"), "/proc/self/ns/net")
}
