package sources

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// KubeadmServiceRange is kubeadm's default of networking.serviceSubnet.
const KubeadmServiceRange = "10.96.0.0/12"

// clusterConfiguration is what is used of kubeadm's ClusterConfiguration,
// v1beta1 to v1beta4.
type clusterConfiguration struct {
	ControlPlaneEndpoint string `json:"controlPlaneEndpoint"`
	Networking           struct {
		ServiceSubnet string `json:"serviceSubnet"`
	} `json:"networking"`
	APIServer struct {
		ExtraArgs kubeadmArgs `json:"extraArgs"`
	} `json:"apiServer"`
}

func parseClusterConfiguration(b []byte) (c clusterConfiguration, err error) {
	err = yaml.Unmarshal(b, &c)
	return c, err
}

// serviceRange is the range that the API server gets: an argument of its own
// replaces networking.serviceSubnet.
func (c *clusterConfiguration) serviceRange() string {
	return cmp.Or(c.APIServer.ExtraArgs["service-cluster-ip-range"], strings.TrimSpace(c.Networking.ServiceSubnet))
}

// kubeadmArgs are extraArgs: a map up to v1beta3, a list of name and value from
// v1beta4 on, where the last one of a name counts.
type kubeadmArgs map[string]string

func (a *kubeadmArgs) UnmarshalJSON(b []byte) error {
	var m map[string]string
	if json.Unmarshal(b, &m) == nil {
		*a = m
		return nil
	}
	var list []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("extraArgs is neither a map nor a list of name and value")
	}
	*a = kubeadmArgs{}
	for _, l := range list {
		(*a)[l.Name] = l.Value
	}
	return nil
}

// localEndpoint is localAPIEndpoint.
type localEndpoint struct {
	AdvertiseAddress string `json:"advertiseAddress"`
	BindPort         int    `json:"bindPort"`
}

func (l *localEndpoint) port() int {
	if l.BindPort == 0 {
		return apiserver.EndpointPort
	}
	return l.BindPort
}

// addControlPlane adds an address of the whole control plane, host[:port],
// where the port may be left out; what names the field. It reports false for
// the Service IP itself: that is where firsthop leads.
func (f *Finding) addControlPlane(where, what, text string, port int) bool {
	text = strings.TrimSpace(text)
	e, reason := apiserver.ParseEndpoint(text)
	if reason != "" {
		if e, reason = apiserver.ParseEndpoint(net.JoinHostPort(strings.Trim(text, "[]"), strconv.Itoa(port))); reason != "" {
			f.Notef("%s: %s %q %s", where, what, apiserver.Clip(text), reason)
			return true
		}
	}
	for _, s := range f.Services {
		switch {
		case e.Addr == s:
			f.Notef("%s: %s %s is the Service IP itself", where, what, e)
			return false
		case e.Addr.Addr() == s.Addr() && e.Resolved():
			f.Notef("%s: %s %s is the Service IP with a port that the Service does not have; write %s", where, what, e, s)
			return true
		}
	}
	f.Notef("%s: %s %s", where, what, e)
	f.AddEndpoint(e)
	return true
}

// addClusterStatus reads the addresses of the control plane's nodes, which
// kubeadm kept in its ConfigMap up to 1.21.
func (f *Finding) addClusterStatus(where, text string) {
	var c struct {
		APIEndpoints map[string]localEndpoint `json:"apiEndpoints"`
	}
	if text == "" || yaml.Unmarshal([]byte(text), &c) != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(c.APIEndpoints)) {
		l := c.APIEndpoints[name]
		if _, err := netip.ParseAddr(l.AdvertiseAddress); err == nil {
			f.addEntry(where, net.JoinHostPort(l.AdvertiseAddress, strconv.Itoa(l.port())))
		}
	}
}
