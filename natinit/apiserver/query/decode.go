package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// Only what is used of the objects. The typed ones of k8s.io/api would cost
// four milliseconds of every start of the program.

type objectPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

type serviceObject struct {
	Spec struct {
		ClusterIP  string       `json:"clusterIP"`
		ClusterIPs []string     `json:"clusterIPs"`
		Ports      []objectPort `json:"ports"`
	} `json:"spec"`
}

type endpointsObject struct {
	Subsets []struct {
		Addresses []struct {
			IP string `json:"ip"`
		} `json:"addresses"`
		Ports []objectPort `json:"ports"`
	} `json:"subsets"`
}

type sliceObject struct {
	Endpoints []struct {
		Addresses  []string `json:"addresses"`
		Conditions struct {
			Ready *bool `json:"ready"`
		} `json:"conditions"`
	} `json:"endpoints"`
	Ports []objectPort `json:"ports"`
}

type configMap struct {
	Data map[string]string `json:"data"`
}

// apiPort picks the port of the API: "https", or the only TCP one.
func apiPort(ports []objectPort) (uint16, bool) {
	var tcp []objectPort
	for _, p := range ports {
		if p.Protocol != "" && p.Protocol != "TCP" || p.Port == 0 {
			continue
		}
		if p.Name == "https" {
			return p.Port, true
		}
		tcp = append(tcp, p)
	}
	if len(tcp) != 1 {
		return 0, false
	}
	return tcp[0].Port, true
}

func decodeService(b []byte) ([]netip.AddrPort, error) {
	var s serviceObject
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("answer is not a Service: %s", apiserver.FirstLine(err))
	}
	port, ok := apiPort(s.Spec.Ports)
	if !ok {
		return nil, errors.New("the Service has no port https")
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP} // before 1.20
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip)
		if err != nil || apiserver.RefuseAddr(a) != "" {
			return nil, fmt.Errorf("the Service has the cluster IP %q", apiserver.Clip(ip))
		}
		out = append(out, netip.AddrPortFrom(a.Unmap(), port))
	}
	return out, nil
}

func decodeServiceList(b []byte) ([]netip.AddrPort, error) {
	return decodeItems(b, decodeService)
}

func decodeEndpointsList(b []byte) ([]apiserver.Endpoint, error) {
	return decodeItems(b, decodeEndpoints)
}

// decodeItems decodes every object of a list.
func decodeItems[T any](b []byte, one func([]byte) ([]T, error)) ([]T, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("answer is not a list: %s", apiserver.FirstLine(err))
	}
	var out []T
	for _, item := range list.Items {
		v, err := one(item)
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
	}
	if len(out) == 0 {
		return nil, errors.New("the list is empty")
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

func decodeEndpoints(b []byte) ([]apiserver.Endpoint, error) {
	var e endpointsObject
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("answer is not an Endpoints: %s", apiserver.FirstLine(err))
	}
	var out []apiserver.Endpoint
	for _, s := range e.Subsets {
		port, ok := apiPort(s.Ports)
		if !ok {
			continue
		}
		for _, a := range s.Addresses {
			if ep, ok := endpointOf(a.IP, port); ok {
				out = append(out, ep)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no usable address")
	}
	return out, nil
}

func decodeSlices(b []byte) ([]apiserver.Endpoint, error) {
	return decodeItems(b, func(b []byte) ([]apiserver.Endpoint, error) {
		var s sliceObject
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, fmt.Errorf("answer is not an EndpointSlice: %s", apiserver.FirstLine(err))
		}
		port, ok := apiPort(s.Ports)
		if !ok {
			return nil, nil
		}
		var out []apiserver.Endpoint
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
				continue
			}
			// All addresses of one endpoint are fungible, and consumers use the
			// first (discovery.k8s.io/v1, field addresses).
			if ep, ok := endpointOf(e.Addresses[0], port); ok {
				out = append(out, ep)
			}
		}
		return out, nil
	})
}

// askConfigMaps asks for the ConfigMaps of the table, all at once.
func (s *session) askConfigMaps(ctx context.Context) []sources.Finding {
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
				namespace, object, _ := strings.Cut(name, "/")
				r, err := s.get(ctx, client, "/api/v1/namespaces/"+namespace+"/configmaps/"+object)
				if err == nil {
					err = r.err()
				}
				var cm configMap
				if err == nil {
					err = json.Unmarshal(r.body, &cm)
				}
				where := "ConfigMap " + name
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
