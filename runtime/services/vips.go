package services

import "github.com/firsthop/firsthop/bpf"

// vips know which addresses are cluster IPs, whose unserved ports are refused:
// also of another Service that has such an address as an external IP, with ports
// of its own.
type vips struct {
	cluster map[bpf.Address]int            // cluster IPs, by how many frontends have them
	guests  map[bpf.Address]map[*entry]int // external and load balancer IPs, by who has how many frontends there
}

func newVIPs() vips {
	return vips{cluster: map[bpf.Address]int{}, guests: map[bpf.Address]map[*entry]int{}}
}

// count notes a frontend that an entry asks for (+1) or no longer does (-1).
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
