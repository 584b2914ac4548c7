package cluster

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// provider is who runs the cluster, as its nodes show it, with how kube-proxy runs there. What of it this program can't see is
// from the provider's documentation.
type provider struct {
	name string
	// inProcess: kube-proxy has no pod.
	inProcess string
	is        func(n *corev1.Node) bool
}

func labelled(prefix string) func(*corev1.Node) bool {
	return func(n *corev1.Node) bool {
		for k := range n.Labels {
			if strings.HasPrefix(k, prefix) {
				return true
			}
		}
		return false
	}
}

func versioned(text string) func(*corev1.Node) bool {
	return func(n *corev1.Node) bool { return strings.Contains(n.Status.NodeInfo.KubeletVersion, text) }
}

// providers are tried in order.
var providers = []provider{
	{"EKS", "", labelled("eks.amazonaws.com/")},
	{"AKS", "", labelled("kubernetes.azure.com/")},
	{"GKE", "", labelled("cloud.google.com/gke-")},
	{"OpenShift", "", labelled("node.openshift.io/")},
	{"kOps", "", labelled("kops.k8s.io/")},
	{"MicroK8s", "in the process kubelite", labelled("microk8s.io/")},
	{"RKE2", "", versioned("+rke2")},
	{"k3s", "in the process k3s, unless servers have --disable-kube-proxy", versioned("+k3s")},
	{"k0s", "", versioned("+k0s")},
	{"Talos", "", func(n *corev1.Node) bool { return strings.HasPrefix(n.Status.NodeInfo.OSImage, "Talos") }},
}

// providerOf finds the provider by the first node that shows one. kubeadm: there is its ConfigMap.
func providerOf(nodes []corev1.Node, kubeadm bool) provider {
	for _, p := range providers {
		for i := range nodes {
			if p.is(&nodes[i]) {
				return p
			}
		}
	}
	if kubeadm {
		return provider{name: "kubeadm"}
	}
	return provider{name: "not known"}
}
