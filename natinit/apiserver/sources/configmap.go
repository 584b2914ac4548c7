package sources

import (
	"cmp"
	"maps"
	"net"
	"path"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// addKubeconfigText adds the server of a kubeconfig that came as text.
func (f *Finding) addKubeconfigText(where, text string) {
	raw, err := clientcmd.Load([]byte(text))
	if err != nil {
		f.Notef("%s: not a kubeconfig: %s", where, apiserver.FirstLine(err))
		return
	}
	if ctx, cl := currentCluster(raw); cl != nil {
		completeServer(raw, ctx, cl)
		f.addURL(where, cl.Server, 0)
		return
	}
	f.Notef("%s: names no server", where)
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
	f.Notef("%s: has no kubeconfig", where)
}

func decodeKubeadmConfig(f *Finding, where string, data map[string]string) {
	c, err := parseClusterConfiguration([]byte(data["ClusterConfiguration"]))
	if err != nil {
		f.Notef("%s: not readable: %s", where, apiserver.FirstLine(err))
		return
	}
	if ranges := c.serviceRange(); ranges != "" {
		f.addServiceRange(where, ranges)
	} else {
		f.Notef("%s: no serviceSubnet", where)
	}
	if ep := c.ControlPlaneEndpoint; ep != "" {
		f.addControlPlane(where, "controlPlaneEndpoint", ep, apiserver.EndpointPort)
	} else {
		f.Notef("%s: no controlPlaneEndpoint", where)
	}
	f.addClusterStatus(where, data["ClusterStatus"])
}

func decodeServicesEndpoint(f *Finding, where string, data map[string]string) {
	host := data["KUBERNETES_SERVICE_HOST"]
	if host == "" {
		f.Notef("%s: no KUBERNETES_SERVICE_HOST", where)
		return
	}
	f.Notef("%s: %s", where, apiserver.Clip(host))
	f.addEntry(where, net.JoinHostPort(strings.Trim(host, "[]"), cmp.Or(data["KUBERNETES_SERVICE_PORT"], "443")))
}
