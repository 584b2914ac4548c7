package bootstrap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// ExtraService is a Service that is seeded beside the API service: what a node
// needs before the runtime is up, such as the cluster's DNS.
type ExtraService struct {
	Proto    bpf.Proto
	Frontend netip.AddrPort
	Backends []netip.AddrPort
}

// maxExtraBackends bounds one entry. More is for the runtime.
const maxExtraBackends = 100

// ParseExtra reads "udp/10.96.0.10:53=10.0.0.5:53,10.0.0.6:53".
func ParseExtra(text string) (ExtraService, error) {
	fail := func(reason string, args ...any) (ExtraService, error) {
		return ExtraService{}, fmt.Errorf("--extra-service %q: %s: want PROTOCOL/SERVICE-IP:PORT=BACKEND-IP:PORT[,…], as udp/10.96.0.10:53=10.0.0.5:53", text, fmt.Sprintf(reason, args...))
	}
	left, right, ok := strings.Cut(text, "=")
	if !ok {
		return fail("no = in it")
	}
	proto, address, ok := strings.Cut(left, "/")
	if !ok {
		return fail("no / in %q", left)
	}
	var e ExtraService
	var err error
	if e.Proto, err = bpf.ParseProto(strings.TrimSpace(proto)); err != nil {
		return fail("%s", err)
	}
	if e.Frontend, err = parseExtraAddress(address); err != nil {
		return fail("%s", err)
	}
	for _, part := range strings.Split(right, ",") {
		b, err := parseExtraAddress(part)
		if err != nil {
			return fail("%s", err)
		}
		if b.Addr().Is4() != e.Frontend.Addr().Is4() {
			return fail("backend %s is of another family than %s", b, e.Frontend)
		}
		if b == e.Frontend {
			return fail("backend %s is the Service itself", b)
		}
		if !slices.Contains(e.Backends, b) {
			e.Backends = append(e.Backends, b)
		}
	}
	if len(e.Backends) > maxExtraBackends {
		return fail("%d backends, at most %d", len(e.Backends), maxExtraBackends)
	}
	return e, nil
}

func parseExtraAddress(text string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(strings.TrimSpace(text))
	if err != nil {
		return ap, fmt.Errorf("%q is not IP:PORT", text)
	}
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	switch a := ap.Addr(); {
	case ap.Port() == 0:
		return ap, fmt.Errorf("%q has port 0", text)
	case a.Zone() != "":
		return ap, fmt.Errorf("%q has a zone", text)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return ap, fmt.Errorf("%q is no address to connect to", text)
	}
	return ap, nil
}

// checkExtra refuses two meanings for one address. An API server's is its own: a
// Service there would take the connections to it.
func checkExtra(extra []ExtraService, services []netip.AddrPort, servers []apiserver.Endpoint) error {
	for _, e := range extra {
		for _, srv := range servers {
			if e.Proto == bpf.TCP && srv.Resolved() && e.Frontend == srv.Addr {
				return fmt.Errorf("--extra-service: %s is the address of an API server, which no Service may have", srv)
			}
		}
	}
	seen := map[bpf.FrontendKey]bool{}
	for _, s := range services {
		seen[bpf.FrontendKeyOf(s, bpf.TCP)] = true
	}
	for _, e := range extra {
		k := bpf.FrontendKeyOf(e.Frontend, e.Proto)
		if seen[k] {
			return fmt.Errorf("--extra-service: %v is given twice, or is the API service", k)
		}
		seen[k] = true
	}
	return nil
}

func (e ExtraService) service() nat.Service {
	k := bpf.FrontendKeyOf(e.Frontend, e.Proto)
	return nat.Service{
		Name:      "extra " + k.String(),
		Frontends: []bpf.FrontendKey{k},
		Backends:  e.Backends,
		Sticky:    e.Proto == bpf.UDP,
	}
}
