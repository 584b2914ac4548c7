package scenes

import (
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// TestBesideKubeProxy has firsthop come to a cluster with kube-proxy, which stays.
func TestBesideKubeProxy(t *testing.T) {
	long(t)
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			c := nodes.New(t)
			n := c.Node("n1")
			n.Import("kube-proxy")
			c.InitConfig = nodes.KubeProxyConfig(mode)
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

// generation is the number of the last rule that kube-proxy (nftables) has for all Services: it writes a new one each time it
// writes all.
const generation = `nft -a list chain ip kube-proxy services | sed -n 's/.* # handle //p' | tail -n 1`

// TestKubeProxyComesBack leaves firsthop: kube-proxy is brought back, the DaemonSet deleted, the node uninstalled and booted.
func TestKubeProxyComesBack(t *testing.T) {
	long(t)
	c := nodes.New(t)
	n := c.Node("n1")
	c.InitConfig = nodes.KubeProxyConfig("nftables")
	n.Kubeadm("init", skipKubeProxy)
	applyDaemonSet(n)
	deployEcho(n)
	awaitCoreDNS(n)
	load := c.Load(loadOfBoth...)
	load.Await(100)
	n.Import("kube-proxy")
	n.Kubeadm("init", "phase", "addon", "kube-proxy", "--config="+nodes.KubeadmConfig)
	awaitDaemonSet(n, "kube-proxy")
	n.Await("kube-proxy serves the Service", "nft list ruleset | grep -q 10.96.7.7")
	n.Sh("kubectl delete -k /opt/deploy/runtime --wait")
	n.Sh("firsthop uninstall")
	load.Await(1000)
	load.Unbroken()

	n.Reboot()
	n.Await("the API server is back", "kubectl get --raw /readyz")
	n.Await("kube-proxy serves the Service again", "nft list ruleset | grep -q 10.96.7.7")
	awaitEcho(n)
	awaitCoreDNS(n)
	if left := n.Sh("ls -d /sys/fs/bpf/firsthop /etc/systemd/system/firsthop* /var/lib/firsthop /run/firsthop 2>/dev/null || true"); strings.TrimSpace(left) != "" {
		t.Errorf("firsthop left %s", left)
	}
	// Of the API server alone: while pods come back, kube-proxy leads to where they were.
	after := c.Load(loadOfAPI...)
	after.Await(100)
	before := n.Sh(generation)
	n.Sh("kubectl label node n1 topology.kubernetes.io/zone=z")
	n.Await("kube-proxy has written all anew", `test "$(`+generation+`)" != '`+before+`'`)
	after.Await(1000)
	after.Unbroken()
}
