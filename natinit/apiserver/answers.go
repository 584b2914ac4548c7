package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
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
		return nil, fmt.Errorf("answer is not a Service: %s", firstLine(err))
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
		if err != nil || refuseAddr(a) != "" {
			return nil, fmt.Errorf("the Service has the cluster IP %q", clip(ip))
		}
		out = append(out, netip.AddrPortFrom(a.Unmap(), port))
	}
	return out, nil
}

func decodeServiceList(b []byte) ([]netip.AddrPort, error) {
	return decodeItems(b, decodeService)
}

func decodeEndpointsList(b []byte) ([]Endpoint, error) {
	return decodeItems(b, decodeEndpoints)
}

// decodeItems decodes every object of a list.
func decodeItems[T any](b []byte, one func([]byte) ([]T, error)) ([]T, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("answer is not a list: %s", firstLine(err))
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
func endpointOf(ip string, port uint16) (Endpoint, bool) {
	a, err := netip.ParseAddr(ip)
	if err != nil || refuseAddr(a) != "" {
		return Endpoint{}, false
	}
	return Endpoint{Addr: netip.AddrPortFrom(a.Unmap(), port)}, true
}

func decodeEndpoints(b []byte) ([]Endpoint, error) {
	var e endpointsObject
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("answer is not an Endpoints: %s", firstLine(err))
	}
	var out []Endpoint
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

func decodeSlices(b []byte) ([]Endpoint, error) {
	return decodeItems(b, func(b []byte) ([]Endpoint, error) {
		var s sliceObject
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, fmt.Errorf("answer is not an EndpointSlice: %s", firstLine(err))
		}
		port, ok := apiPort(s.Ports)
		if !ok {
			return nil, nil
		}
		var out []Endpoint
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

// askConfigMaps asks for what installers and other dataplanes leave in the
// cluster, all at once.
func (s *session) askConfigMaps(ctx context.Context) []Finding {
	asks := []struct {
		source Source
		client *http.Client
		paths  []string
		decode func(f *Finding, where string, data map[string]string)
	}{
		// kubeadm lets only system:anonymous read it: a node is refused.
		{SourceClusterInfo, s.anonymous, []string{"kube-public/configmaps/cluster-info"}, decodeClusterInfo},
		{SourceKubeadmConfig, s.client, []string{"kube-system/configmaps/kubeadm-config"}, decodeKubeadmConfig},
		// A node may read these two only while a pod on it uses them.
		{SourceKubeProxy, s.client, []string{"kube-system/configmaps/kube-proxy"}, decodeKubeProxy},
		{SourceServicesEndpoint, s.client, []string{"kube-system/configmaps/kubernetes-services-endpoint",
			"tigera-operator/configmaps/kubernetes-services-endpoint"}, decodeServicesEndpoint},
	}
	out := make([]Finding, len(asks))
	var wg sync.WaitGroup
	for i, a := range asks {
		out[i].Source = a.source
		wg.Go(func() {
			for _, p := range a.paths {
				r, err := s.get(ctx, a.client, "/api/v1/namespaces/"+p)
				if err == nil {
					err = r.err()
				}
				var cm configMap
				if err == nil {
					err = json.Unmarshal(r.body, &cm)
				}
				where := "ConfigMap " + strings.Replace(p, "/configmaps/", "/", 1)
				if err != nil {
					out[i].notef("%s: %s", where, firstLine(err))
					continue
				}
				a.decode(&out[i], where, cm.Data)
			}
		})
	}
	wg.Wait()
	return out
}

// addKubeconfigText adds the server of a kubeconfig that came as text.
func (f *Finding) addKubeconfigText(where, text string) {
	raw, err := clientcmd.Load([]byte(text))
	if err != nil {
		f.notef("%s: not a kubeconfig: %s", where, firstLine(err))
		return
	}
	if ctx, cl := currentCluster(raw); cl != nil {
		completeServer(raw, ctx, cl)
		f.addURL(where, cl.Server, 0)
		return
	}
	f.notef("%s: names no server", where)
}

func decodeClusterInfo(f *Finding, where string, data map[string]string) {
	f.addKubeconfigText(where, data["kubeconfig"])
}

// decodeKubeProxy takes the kubeconfig under the key that kube-proxy's own
// configuration names, under the keys of kubeadm and EKS, else under any.
func decodeKubeProxy(f *Finding, where string, data map[string]string) {
	var keys []string
	for _, name := range slices.Sorted(maps.Keys(data)) {
		var c struct {
			ClientConnection struct {
				Kubeconfig string `json:"kubeconfig"`
			} `json:"clientConnection"`
		}
		if yaml.Unmarshal([]byte(data[name]), &c) == nil && c.ClientConnection.Kubeconfig != "" {
			keys = append(keys, path.Base(c.ClientConnection.Kubeconfig))
		}
	}
	keys = append(keys, "kubeconfig.conf", "kubeconfig")
	keys = append(keys, slices.Sorted(maps.Keys(data))...)
	for _, k := range keys {
		raw, err := clientcmd.Load([]byte(data[k]))
		if err == nil && len(raw.Clusters) > 0 {
			f.addKubeconfigText(where, data[k])
			return
		}
	}
	f.notef("%s: has no kubeconfig", where)
}

func decodeKubeadmConfig(f *Finding, where string, data map[string]string) {
	c, err := parseClusterConfiguration([]byte(data["ClusterConfiguration"]))
	if err != nil {
		f.notef("%s: not readable: %s", where, firstLine(err))
		return
	}
	if ranges := c.serviceRange(); ranges != "" {
		f.addServiceRange(where, ranges)
	} else {
		f.notef("%s: no serviceSubnet", where)
	}
	if ep := c.ControlPlaneEndpoint; ep != "" {
		f.addControlPlane(where, "controlPlaneEndpoint", ep, EndpointPort)
	} else {
		f.notef("%s: no controlPlaneEndpoint", where)
	}
	f.addClusterStatus(where, data["ClusterStatus"])
}

func decodeServicesEndpoint(f *Finding, where string, data map[string]string) {
	host := data["KUBERNETES_SERVICE_HOST"]
	if host == "" {
		f.notef("%s: no KUBERNETES_SERVICE_HOST", where)
		return
	}
	f.notef("%s: %s", where, clip(host))
	f.addEntry(where, net.JoinHostPort(strings.Trim(host, "[]"), orElse(data["KUBERNETES_SERVICE_PORT"], "443")))
}
