package services

import (
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// vips know which addresses are cluster IPs. Their unserved ports are refused,
// also where another Service has such an address as an external IP, with ports of
// its own: then the address is a VIP of both.
type vips struct {
	cluster map[bpf.Address]int            // cluster IPs, by how many frontends have them
	guests  map[bpf.Address]map[*entry]int // external and load balancer IPs, by who has how many frontends there
}

func newVIPs() vips {
	return vips{cluster: map[bpf.Address]int{}, guests: map[bpf.Address]map[*entry]int{}}
}

// count notes a frontend that an entry asks for (+1) or doesn't any more (-1).
// affected are entries to which that makes a difference.
func (v *vips) count(e *entry, k bpf.FrontendKey, kind Kind, by int, affected []*entry) []*entry {
	switch kind {
	case ClusterIP:
		before := v.cluster[k.Addr]
		if v.cluster[k.Addr] += by; v.cluster[k.Addr] == 0 {
			delete(v.cluster, k.Addr)
		}
		if before == 0 || before+by == 0 {
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

// of adds to Ports the cluster IPs of others that they are guests of. It changes
// no list that is shared.
func (v *vips) of(ports []Port) []Port {
	if len(v.guests) == 0 {
		return ports
	}
	own := false // whether ports is a copy
	for i := range ports {
		for j, k := range ports[i].Frontends {
			if kind := ports[i].Kinds[j]; kind == NodePort || v.cluster[k.Addr] == 0 || slices.Contains(ports[i].VIPs, k.Addr.Addr()) {
				continue
			}
			if !own {
				ports, own = slices.Clone(ports), true
			}
			ports[i].VIPs = append(slices.Clone(ports[i].VIPs), k.Addr.Addr())
		}
	}
	return ports
}
