package query

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

const (
	servicePath       = "/api/v1/namespaces/default/services/kubernetes"
	serviceListPath   = "/api/v1/namespaces/default/services?fieldSelector=metadata.name%3Dkubernetes"
	endpointsPath     = "/api/v1/namespaces/default/endpoints/kubernetes"
	endpointsListPath = "/api/v1/namespaces/default/endpoints?fieldSelector=metadata.name%3Dkubernetes"
	slicesPath        = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
)

// services asks for the addresses of the Service.
func (s *session) services(ctx context.Context) ([]netip.AddrPort, error) {
	return firstAllowed(
		func() ([]netip.AddrPort, error) {
			service, err := get[corev1.Service](ctx, s, s.client, servicePath)
			return decoded([]corev1.Service{service}, err, serviceAddrs)
		},
		func() ([]netip.AddrPort, error) {
			list, err := get[corev1.ServiceList](ctx, s, s.client, serviceListPath)
			return decoded(list.Items, err, serviceAddrs)
		})
}

// endpoints asks for the endpoints of the Service. Endpoints are deprecated since 1.33, but all that a kubelet may read.
func (s *session) endpoints(ctx context.Context) ([]apiserver.Endpoint, error) {
	return firstAllowed(
		func() ([]apiserver.Endpoint, error) {
			//lint:ignore SA1019 see above
			one, err := get[corev1.Endpoints](ctx, s, s.client, endpointsPath)
			//lint:ignore SA1019 see above
			return decoded([]corev1.Endpoints{one}, err, endpointAddrs)
		},
		func() ([]apiserver.Endpoint, error) {
			list, err := get[corev1.EndpointsList](ctx, s, s.client, endpointsListPath)
			return decoded(list.Items, err, endpointAddrs)
		},
		func() ([]apiserver.Endpoint, error) {
			list, err := get[discoveryv1.EndpointSliceList](ctx, s, s.client, slicesPath)
			return decoded(list.Items, err, sliceAddrs)
		})
}

// firstAllowed asks until an answer is not a refusal. The first refusal counts.
func firstAllowed[T any](questions ...func() ([]T, error)) ([]T, error) {
	var first error
	for _, ask := range questions {
		out, err := ask()
		if err == nil || status(err) == http.StatusOK {
			return out, err
		}
		first = cmp.Or(first, err)
		if status(err) != http.StatusForbidden {
			break
		}
	}
	return nil, first
}

// decoded decodes every object of an answer.
func decoded[O, T any](objects []O, err error, decode func(*O) ([]T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	var out []T
	for i := range objects {
		v, err := decode(&objects[i])
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
	}
	if len(out) == 0 {
		return nil, notUsable("it has no usable address")
	}
	return out, nil
}

// port is what Services, Endpoints and EndpointSlices say of one of theirs.
type port struct {
	name     string
	protocol corev1.Protocol
	number   int32
}

// apiPort picks the port of the API: "https", or the only TCP one.
func apiPort[P any](ports []P, of func(P) port) (uint16, bool) {
	var tcp []uint16
	for _, p := range ports {
		p := of(p)
		if p.protocol != "" && p.protocol != corev1.ProtocolTCP || p.number <= 0 || p.number > 65535 {
			continue
		}
		if p.name == "https" {
			return uint16(p.number), true
		}
		tcp = append(tcp, uint16(p.number))
	}
	if len(tcp) != 1 {
		return 0, false
	}
	return tcp[0], true
}

func serviceAddrs(s *corev1.Service) ([]netip.AddrPort, error) {
	number, ok := apiPort(s.Spec.Ports, func(p corev1.ServicePort) port { return port{p.Name, p.Protocol, p.Port} })
	if !ok {
		return nil, notUsable("the Service has no port https")
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP} // before 1.20
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		e, ok := endpointOf(ip, number)
		if !ok {
			return nil, notUsable("the Service has the cluster IP %q", apiserver.Clip(ip))
		}
		out = append(out, e.Addr)
	}
	return out, nil
}

// endpointOf judges an address that the API gave. Addresses that cannot be
// used are left out: one bad one must not cost the good ones.
func endpointOf(ip string, port uint16) (apiserver.Endpoint, bool) {
	a, err := netip.ParseAddr(ip)
	if err != nil || apiserver.RefuseAddr(a) != "" {
		return apiserver.Endpoint{}, false
	}
	return apiserver.Endpoint{Addr: netip.AddrPortFrom(a.Unmap(), port)}, true
}

//lint:ignore SA1019 see endpoints
func endpointAddrs(e *corev1.Endpoints) (out []apiserver.Endpoint, err error) {
	for _, s := range e.Subsets {
		number, ok := apiPort(s.Ports, func(p corev1.EndpointPort) port { return port{p.Name, p.Protocol, p.Port} })
		for _, a := range s.Addresses {
			if ep, usable := endpointOf(a.IP, number); ok && usable {
				out = append(out, ep)
			}
		}
	}
	return out, nil
}

func sliceAddrs(s *discoveryv1.EndpointSlice) (out []apiserver.Endpoint, err error) {
	number, ok := apiPort(s.Ports, func(p discoveryv1.EndpointPort) port {
		if p.Port == nil {
			return port{}
		}
		out := port{number: *p.Port}
		if p.Name != nil {
			out.name = *p.Name
		}
		if p.Protocol != nil {
			out.protocol = *p.Protocol
		}
		return out
	})
	for _, e := range s.Endpoints {
		if !ok || e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
			continue
		}
		// All addresses of one endpoint are fungible, and consumers use the first (discovery.k8s.io/v1, field addresses).
		if ep, usable := endpointOf(e.Addresses[0], number); usable {
			out = append(out, ep)
		}
	}
	return out, nil
}

// configMaps asks for the ConfigMaps of the table, all at once.
func (s *session) configMaps(ctx context.Context) []sources.Finding {
	out := make([]sources.Finding, len(sources.ConfigMaps))
	var wg sync.WaitGroup
	for i, c := range sources.ConfigMaps {
		out[i].Source = c.Source
		client := s.client
		if c.Anonymous {
			client = s.anonymous
		}
		wg.Go(func() {
			for _, name := range c.Names {
				where := "ConfigMap " + name
				namespace, object, _ := strings.Cut(name, "/")
				cm, err := get[corev1.ConfigMap](ctx, s, client, "/api/v1/namespaces/"+namespace+"/configmaps/"+object)
				if err != nil {
					out[i].Notef("%s: %s", where, apiserver.FirstLine(err))
					continue
				}
				c.Decode(&out[i], where, cm.Data)
			}
		})
	}
	wg.Wait()
	return out
}
