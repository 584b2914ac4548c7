package runtime

import (
	"net"
	"net/netip"
	"net/url"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// serviceAddrs are the addresses of the API service before the API sends them: those
// that are given, else the saved ones, else those by which this process is to reach the API, where the
// table serves them, else what init has put into the table. A Service IP that is not
// known as such would be taken for an API server.
func (r *run) serviceAddrs(server string) ([]netip.AddrPort, error) {
	if len(r.cfg.Services) > 0 {
		return r.cfg.Services, nil
	}
	if known, err := apiserver.Load(r.cfg.StateDir); err == nil && len(known.Services) > 0 && known.Foreign(apiserver.MachineOf(r.cfg.HostRoot), nil) == "" {
		return known.Services, nil
	}
	var out []netip.AddrPort
	for _, a := range slices.Concat(addrOfURL(server), sources.Pod(r.cfg.Pod).Services) {
		if !slices.Contains(out, a) && r.data.IsService(a) {
			out = append(out, a)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	state, err := r.data.Store().Read()
	if err != nil {
		return nil, err
	}
	return seededAddrs(state), nil
}

// addrOfURL is the address in the URL of an API server, if it has no name there.
func addrOfURL(server string) []netip.AddrPort {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	a, err := netip.ParseAddrPort(net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}
}

// seededAddrs are the addresses of the one Service of each family that init has
// seeded over TCP. Where it has seeded others beside, nothing tells which is the API service.
func seededAddrs(state *nat.State) []netip.AddrPort {
	byFamily := map[bool]map[uint32][]netip.AddrPort{true: {}, false: {}}
	for k, fe := range state.Frontends {
		if k.Proto == bpf.TCP && nat.InitIndexes.Contains(fe.Index) {
			of := byFamily[k.Addr.Addr().Is4()]
			of[fe.Index] = append(of[fe.Index], k.AddrPort())
		}
	}
	var out []netip.AddrPort
	for _, is4 := range []bool{true, false} {
		if len(byFamily[is4]) == 1 {
			for _, list := range byFamily[is4] {
				out = append(out, list...)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}
