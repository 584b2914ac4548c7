package services

import "github.com/firsthop/firsthop/bpf"

// vips know which addresses are cluster IPs, whose unserved ports are refused:
// also of another Service that has such an address as an external IP, with ports
// of its own. Likewise, they know which addresses are to be marked for clients outside:
// also of the Service whose cluster IP or external IP one is.
type vips struct {
	cluster map[bpf.Address]owner          // cluster IPs
	guests  map[bpf.Address]map[*entry]int // external and load balancer IPs, by who has how many frontends there
	outside map[bpf.Address]int            // Port.ExternalVIPs, by how many Ports have them
}

// owner is who has a cluster IP.
type owner struct {
	by        *entry // the first one that asked for it
	contested bool   // there was another: the API server gives none to two
	frontends int
}

func newVIPs() vips {
	return vips{cluster: map[bpf.Address]owner{}, guests: map[bpf.Address]map[*entry]int{}, outside: map[bpf.Address]int{}}
}

// hasVIP reports whether a mark may be asked for.
func (v *vips) hasVIP(a bpf.Address) bool { return v.cluster[a].frontends > 0 || v.outside[a] > 0 }

// count notes a frontend that an entry asks for (+1) or no longer does (-1).
// affected are entries to which that makes a difference.
func (v *vips) count(e *entry, k bpf.FrontendKey, kind Kind, by int, affected []*entry) []*entry {
	switch kind {
	case ClusterIP:
		o := v.cluster[k.Addr]
		before := o.frontends
		if o.frontends += by; before == 0 {
			o.by = e
		}
		o.contested = o.contested || o.by != e
		if v.cluster[k.Addr] = o; o.frontends == 0 {
			delete(v.cluster, k.Addr)
		}
		if before == 0 || o.frontends == 0 {
			for guest := range v.guests[k.Addr] {
				affected = append(affected, guest)
			}
		}
	case ExternalIP, LoadBalancerIP:
		if v.guests[k.Addr] == nil {
			v.guests[k.Addr] = map[*entry]int{}
		}
		if v.guests[k.Addr][e] += by; v.guests[k.Addr][e] == 0 {
			delete(v.guests[k.Addr], e)
		}
		if len(v.guests[k.Addr]) == 0 {
			delete(v.guests, k.Addr)
		}
	}
	return affected
}

// countOutside notes an address that an entry wants to be marked for clients outside (+1) or no longer does (-1).
// affected are other entries to which that makes a difference.
func (c *claims) countOutside(e *entry, a bpf.Address, by int, affected []*entry) []*entry {
	before := c.outside[a]
	if c.outside[a] += by; c.outside[a] == 0 {
		delete(c.outside, a)
	}
	if before != 0 && before+by != 0 {
		return affected
	}
	for guest := range c.guests[a] {
		if guest != e {
			affected = append(affected, guest)
		}
	}
	switch o := c.cluster[a]; {
	case o.contested:
		return c.holders(a, affected)
	case o.frontends > 0 && o.by != e:
		return append(affected, o.by)
	}
	return affected
}

// holders adds all that have frontends at an address, at the cost of the whole table.
func (c *claims) holders(a bpf.Address, affected []*entry) []*entry {
	for k, has := range c.holder {
		if k.Addr == a {
			affected = append(affected, has.by)
		}
	}
	return affected
}
