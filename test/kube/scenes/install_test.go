package scenes

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// skipKubeProxy is what users of firsthop say to kubeadm.
const skipKubeProxy = "--skip-phases=addon/kube-proxy"

// loadOfAPI is a load for the API server's Service.
var loadOfAPI = []string{"connect=" + nodes.API, "hold=" + nodes.API, "api=https://" + nodes.API}

// awaitCoreDNS waits until CoreDNS is ready: it reads Services by the API server's Service IP.
func awaitCoreDNS(n *nodes.Node) {
	n.Await("CoreDNS is ready", "kubectl -n kube-system rollout status deployment/coredns --timeout=5s")
}

// installBeforeKubeadm has firsthop serve the API server's Service on a node that kubeadm is going to initialize.
func installBeforeKubeadm(n *nodes.Node) {
	n.PutKubeadmConfig(nodes.InitConfig)
	n.Sh("firsthop install --kubeadm-config " + nodes.KubeadmConfig)
	n.Sh("systemctl start firsthop-init")
}

// TestInstallBeforeKubeadm has firsthop on the host before there is a cluster, and nothing of it in the cluster.
func TestInstallBeforeKubeadm(t *testing.T) {
	c := nodes.New(t)
	n := c.Node("n1")
	installBeforeKubeadm(n)
	n.Kubeadm("init", skipKubeProxy)
	load := c.Load(loadOfAPI...)
	awaitCoreDNS(n)
	load.Await(1000)
	load.Unbroken()
}

// TestDaemonSetAfterKubeadm has the DaemonSet in a cluster that was made without kube-proxy.
func TestDaemonSetAfterKubeadm(t *testing.T) {
	c := nodes.New(t)
	n := c.Node("n1")
	n.Kubeadm("init", skipKubeProxy)
	applyDaemonSet(n)
	deployEcho(n)
	load := c.Load(loadOfBoth...)
	awaitCoreDNS(n)
	load.Await(1000)
	load.Unbroken()
}
