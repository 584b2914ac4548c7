package services

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// claims say which Service has which frontend.
type claims struct {
	vips
	reserved  reserved
	nodeAddrs map[netip.Addr]int // the Table's
	holder    map[bpf.FrontendKey]claim
	rivals    map[bpf.FrontendKey][]claim // of frontends with several claims, the holder's first
}

// claim is a Service's request for a frontend.
type claim struct {
	by   *entry
	kind Kind
}

func newClaims() claims {
	return claims{vips: newVIPs(), holder: map[bpf.FrontendKey]claim{}, rivals: map[bpf.FrontendKey][]claim{}}
}

// compare puts the better claim first. The API service's is the best.
func (c claim) compare(o claim) int {
	if api := c.by.name == APIService; api != (o.by.name == APIService) {
		if api {
			return -1
		}
		return 1
	}
	mine, theirs := c.kind != ClusterIP, o.kind != ClusterIP
	switch {
	case mine != theirs && theirs:
		return -1
	case mine != theirs:
		return 1
	}
	a, b := c.by.svc.CreationTimestamp, o.by.svc.CreationTimestamp
	return cmp.Or(a.Compare(b.Time), CompareNames(c.by.name, o.by.name))
}

// CompareNames orders objects by namespace and name.
func CompareNames(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// sameClaims reports whether two lists of Ports claim the same.
func sameClaims(a, b []Port) bool {
	return slices.EqualFunc(a, b, func(x, y Port) bool {
		return slices.Equal(x.Frontends, y.Frontends) && slices.Equal(x.Kinds, y.Kinds) && slices.Equal(x.ExternalVIPs, y.ExternalVIPs)
	})
}

// contested reports whether an entry claims what another claims, too.
func (c *claims) contested(e *entry) bool {
	if len(c.rivals) == 0 {
		return false
	}
	for i := range e.asked {
		for _, k := range e.asked[i].Frontends {
			if len(c.rivals[k]) > 0 {
				return true
			}
		}
	}
	return false
}

// replace takes back what an entry claimed and claims what it asks for now.
// affected are others whose frontends may have changed by it.
func (c *claims) replace(e *entry, asked []Port) (affected []*entry) {
	for i := range e.asked {
		for j, k := range e.asked[i].Frontends {
			affected = c.release(k, e, affected)
			affected = c.count(e, k, e.asked[i].Kinds[j], -1, affected)
		}
		for _, a := range e.asked[i].ExternalVIPs {
			affected = c.countOutside(e, bpf.AddressOf(a), -1, affected)
		}
	}
	for i := range asked {
		for j, k := range asked[i].Frontends {
			affected = c.claim(k, claim{e, asked[i].Kinds[j]}, affected)
			affected = c.count(e, k, asked[i].Kinds[j], +1, affected)
		}
		for _, a := range asked[i].ExternalVIPs {
			affected = c.countOutside(e, bpf.AddressOf(a), +1, affected)
		}
	}
	return affected
}

func (c *claims) release(k bpf.FrontendKey, e *entry, affected []*entry) []*entry {
	rivals := c.rivals[k]
	if len(rivals) == 0 {
		delete(c.holder, k)
		return affected
	}
	rest := slices.DeleteFunc(rivals, func(r claim) bool { return r.by == e })
	c.holder[k] = rest[0]
	c.rivals[k] = rest
	if len(rest) == 1 {
		delete(c.rivals, k)
	}
	return appendAll(affected, rest)
}

func (c *claims) claim(k bpf.FrontendKey, mine claim, affected []*entry) []*entry {
	has, ok := c.holder[k]
	if !ok {
		c.holder[k] = mine
		return affected
	}
	rivals := c.rivals[k]
	if len(rivals) == 0 {
		rivals = []claim{has}
	}
	at, _ := slices.BinarySearchFunc(rivals, mine, claim.compare)
	rivals = slices.Insert(rivals, at, mine)
	c.rivals[k], c.holder[k] = rivals, rivals[0]
	return appendAll(affected, rivals)
}

// appendAll adds all rivals: the holder for what it has, the others for whom they lost it to.
func appendAll(affected []*entry, rivals []claim) []*entry {
	for _, r := range rivals {
		affected = append(affected, r.by)
	}
	return affected
}

// granted is what an entry asks for without the frontends that are reserved or
// that others have, with a Problem for each of those.
func (c *claims) granted(e *entry) (wanted []Port, lost []Problem) {
	for i := range e.asked {
		p := &e.asked[i]
		for j, k := range p.Frontends {
			if of := c.reserved.denied(e, k); of != "" {
				lost = append(lost, refused(p, j, AddressReserved, "is not served: it is the address of", of))
			} else if by := c.holder[k].by; by != e {
				lost = append(lost, refused(p, j, FrontendTaken, "is served for", by.name))
			}
		}
	}
	if len(lost) == 0 {
		return c.withVIPs(e.asked), nil
	}
	for _, p := range e.asked {
		p.keep(func(k bpf.FrontendKey) bool { return c.holder[k].by == e && c.reserved.denied(e, k) == "" })
		if len(p.Frontends) > 0 {
			wanted = append(wanted, p)
		}
	}
	return c.withVIPs(wanted), lost
}

// refused is the Problem of a frontend that its Service does not get.
func refused(p *Port, i int, reason Reason, why string, of any) Problem {
	return Problem{Kind: "Service", Object: p.Key.Service, Port: p.Key.Name, Reason: reason,
		Message: fmt.Sprintf("its %v %v %s %v", p.Kinds[i], p.Frontends[i], why, of)}
}

// withVIPs completes the VIPs of Ports, the addresses whose unserved ports are
// refused: those that the other Services there have are added, hosts of
// API servers are left out, as nobody knows all of their ports. It changes no
// list that is shared.
func (c *claims) withVIPs(ports []Port) []Port {
	copied := false
	for i := range ports {
		p := &ports[i]
		vips, external := c.vipsOf(p), c.externalVIPsOf(p)
		if slices.Equal(vips, p.VIPs) && slices.Equal(external, p.ExternalVIPs) {
			continue
		}
		if !copied {
			ports, copied = slices.Clone(ports), true
		}
		ports[i].VIPs, ports[i].ExternalVIPs = vips, external
	}
	return ports
}

// vipsOf are the VIPs of a Port, with cluster IPs of others at which it has frontends.
func (c *claims) vipsOf(p *Port) []netip.Addr {
	vips := slices.Clip(p.VIPs)
	if len(c.guests) > 0 {
		for j, k := range p.Frontends {
			if p.Kinds[j] != NodePort && c.cluster[k.Addr].frontends > 0 && !slices.Contains(vips, k.Addr.Addr()) {
				vips = append(vips, k.Addr.Addr())
			}
		}
	}
	return without(vips, c.reserved.host)
}

// externalVIPsOf are the VIPs that a Port has for clients outside, with those of others at which it has frontends. Nodes
// keep the ports that no Service has: packets for another one may pass here.
func (c *claims) externalVIPsOf(p *Port) []netip.Addr {
	vips := slices.Clip(p.ExternalVIPs)
	for j, k := range p.Frontends {
		if p.Kinds[j] != NodePort && c.outside[k.Addr] > 0 && !slices.Contains(vips, k.Addr.Addr()) {
			vips = append(vips, k.Addr.Addr())
		}
	}
	return without(vips, func(a netip.Addr) bool { return c.reserved.host(a) || c.nodeAddrs[a] > 0 })
}

// without is a list without some of its elements. The list is not changed.
func without(list []netip.Addr, unwanted func(netip.Addr) bool) []netip.Addr {
	if !slices.ContainsFunc(list, unwanted) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), unwanted)
}
