package scenes

import (
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// kubeProxyConfig is for kubeadm: a kube-proxy in a mode, that does not set what belongs to the whole machine.
func kubeProxyConfig(mode string) string {
	return nodes.InitConfig + `---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ` + mode + `
conntrack: {maxPerCore: 0, min: 0}
`
}

// TestBesideKubeProxy has firsthop come to a cluster with kube-proxy, which stays.
func TestBesideKubeProxy(t *testing.T) {
	long(t)
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			c := nodes.New(t)
			n := c.Node("n1")
			n.Import("kube-proxy")
			c.InitConfig = kubeProxyConfig(mode)
			n.Kubeadm("init")
			awaitDaemonSet(n, "kube-proxy")
			deployEcho(n)
			awaitCoreDNS(n)
			load := c.Load(loadOfBoth...)
			load.Await(100)
			applyDaemonSet(n)
			load.Await(1000)
			n.Sh("kubectl delete -k /opt/deploy/runtime --wait")
			load.Await(100)
			load.Unbroken()
		})
	}
}
