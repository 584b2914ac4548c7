package scenes

import (
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// TestKubeadmUpgrade upgrades a cluster by kubeadm, which restarts its only API server: Services are served on, and no
// kube-proxy comes.
func TestKubeadmUpgrade(t *testing.T) {
	long(t)
	c := nodes.New(t)
	n := c.Node("n1")
	to := c.Version
	c.Version = nodes.FormerVersion
	n.ImportFormer()
	n.Kubeadm("init", skipKubeProxy)
	applyDaemonSet(n)
	deployEcho(n)
	awaitCoreDNS(n)
	load := c.Load(loadOfEcho...)
	n.Kubeadm("upgrade", "apply", to, "--yes", "--ignore-preflight-errors=all")
	n.Await("the API server is of the new version", "kubectl -n kube-system get pod kube-apiserver-n1 -o jsonpath='{.spec.containers[0].image}' | grep "+to)
	awaitCoreDNS(n)
	if proxies, err := n.Try("kubectl -n kube-system get daemonset kube-proxy"); err == nil {
		t.Errorf("kubeadm brought kube-proxy: %s", proxies)
	}
	load.Await(1000)
	load.Unbroken()
}
