package conntrack

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/bpf"
)

// Filter says which flows are meant. What is not set matches all.
type Filter struct {
	Client   netip.Prefix
	Frontend Endpoint
	Backend  Endpoint
	Proto    bpf.Proto
	States   []State
}

// Empty reports whether it matches all flows.
func (f *Filter) Empty() bool {
	return !f.Client.IsValid() && f.Frontend == (Endpoint{}) && f.Backend == (Endpoint{}) && f.Proto == 0 && len(f.States) == 0
}

func (f *Filter) matches(flow *Flow) bool {
	if f.Client.IsValid() && !f.Client.Contains(flow.Client.Addr()) || f.Proto != 0 && f.Proto != flow.Proto {
		return false
	}
	for _, s := range f.States {
		if s == flow.State {
			return f.Frontend.matches(flow.Frontend) && f.Backend.matches(flow.Backend)
		}
	}
	return len(f.States) == 0 && f.Frontend.matches(flow.Frontend) && f.Backend.matches(flow.Backend)
}

// Endpoint is an address, with a port or with all: 0.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
}

func (e Endpoint) matches(a netip.AddrPort) bool {
	return (!e.Addr.IsValid() || e.Addr == a.Addr()) && (e.Port == 0 || e.Port == a.Port())
}

// ParseClient reads an address or a CIDR. IPv4 may be in its v4-mapped form.
func ParseClient(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q: want an address or a CIDR, as 203.0.113.2 or 2001:db8::/64", s)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// ParseEndpoint reads an address, with or without a port: 192.0.2.10, 192.0.2.10:80, 2001:db8::1, [2001:db8::1]:80. IPv4 may
// be in its v4-mapped form.
func ParseEndpoint(s string) (Endpoint, error) {
	wrong := fmt.Errorf("%q: want an address, with or without a port, as 192.0.2.10:80 or [2001:db8::1]:80", s)
	bare := s
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if addr, ok := strings.CutSuffix(inside, "]"); ok {
			bare = addr
		}
	}
	if addr, err := netip.ParseAddr(bare); err == nil && addr.Zone() == "" && (bare == s || addr.Is6()) {
		return Endpoint{Addr: addr.Unmap()}, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Zone() != "" || a.Port() == 0 {
		return Endpoint{}, wrong
	}
	return Endpoint{a.Addr().Unmap(), a.Port()}, nil
}

func (e Endpoint) String() string {
	if e.Port == 0 {
		return e.Addr.String()
	}
	return netip.AddrPortFrom(e.Addr, e.Port).String()
}

// ParseState reads the name of a state that flows may have.
func ParseState(s string) (State, error) {
	var names []string
	for _, state := range FlowStates() {
		if state.String() == s {
			return state, nil
		}
		names = append(names, state.String())
	}
	return 0, fmt.Errorf("%s: want %s", strconv.Quote(s), strings.Join(names, ", "))
}
