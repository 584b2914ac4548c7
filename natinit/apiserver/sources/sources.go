// Package sources reads where addresses of API servers may be written: files of the node, the environment of a pod, and
// ConfigMaps of the cluster. It tells which cluster the node belongs to (identity.go), too: what is of another one is not used.
//
// A new source is a function below, a row in one of the tables here, and a name in apiserver.Source.
package sources

import "github.com/firsthop/firsthop/natinit/apiserver"

// fileSources are those in files of the host, in rank order.
var fileSources = []func(*host) Finding{
	kubeadmSource, kubeletSource, rancherSource(k3s), rancherSource(rke2), microk8sSource, canonicalSource, k0sSource, serverSource, balancerSource,
}

// ConfigMap is one that names addresses of API servers.
type ConfigMap struct {
	Source apiserver.Source
	// Anonymous is true where only the anonymous user may read it.
	Anonymous bool
	// Names are namespace/name; all of them are read.
	Names  []string
	Decode func(f *Finding, where string, data map[string]string)
}

// ConfigMaps are those that installers and other dataplanes leave in a cluster, in rank order.
var ConfigMaps = []ConfigMap{
	// kubeadm lets only system:anonymous read it: a node is refused.
	{apiserver.SourceClusterInfo, true, []string{"kube-public/cluster-info"}, decodeClusterInfo},
	{apiserver.SourceKubeadmConfig, false, []string{"kube-system/kubeadm-config"}, decodeKubeadmConfig},
	// A node may read these two only while a pod on it uses them.
	{apiserver.SourceKubeProxy, false, []string{"kube-system/kube-proxy"}, decodeKubeProxy},
	{apiserver.SourceServicesEndpoint, false, []string{"kube-system/kubernetes-services-endpoint", "tigera-operator/kubernetes-services-endpoint"},
		decodeServicesEndpoint},
}

// Files reads every source that is in files of the host, in rank order. Nothing is dialled, no name is looked up, nothing
// is changed.
func Files(root string) []Finding { return newHost(root).sources() }

func (h *host) sources() []Finding {
	go h.commands() // some milliseconds that the first of them can spare
	out := make([]Finding, len(fileSources))
	for i, read := range fileSources {
		out[i] = read(h)
		out[i].addCAFiles(h.root)
	}
	return out
}

// Kubeconfig reads one kubeconfig of the host, of a component that
// was given one.
func Kubeconfig(root, path string) Finding {
	f := Finding{Source: apiserver.SourceKubeconfig}
	if !f.addKubeconfig(root, path) {
		f.Notef("no %s", path)
	}
	return f
}
