package scenes

import (
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// long leaves a scene out of the short half, which is in CI.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("one of the long scenes: make test-cluster")
	}
}

// TestDaemonSetRollsOutAndGoes restarts the DaemonSet, brings another version, and deletes it: what is pinned on the nodes
// serves on.
func TestDaemonSetRollsOutAndGoes(t *testing.T) {
	long(t)
	c := nodes.New(t)
	n := c.Node("n1")
	n.Kubeadm("init", skipKubeProxy)
	applyDaemonSet(n)
	deployEcho(n)
	awaitCoreDNS(n)
	load := c.Load(loadOfBoth...)
	load.Await(100)
	n.Sh("kubectl -n kube-system rollout restart daemonset/firsthop")
	awaitDaemonSet(n, "firsthop")
	n.Import("firsthop-next")
	n.Sh("kubectl -n kube-system set image daemonset/firsthop init=" + nodes.NextImage + " firsthop=" + nodes.NextImage)
	awaitDaemonSet(n, "firsthop")
	if version := n.Sh("kubectl -n kube-system exec daemonset/firsthop -- /usr/bin/firsthop version"); version == n.Sh("firsthop version") {
		t.Errorf("the version is still %s", version)
	}
	n.Sh("kubectl delete -k /opt/deploy/runtime --wait")
	load.Await(1000)
	load.Unbroken()
}

// TestWorkerJoins has a node come to a cluster with the DaemonSet, under load on the others and then on it.
func TestWorkerJoins(t *testing.T) {
	long(t)
	c := nodes.New(t)
	n := c.Node("n1")
	n.Kubeadm("init", skipKubeProxy)
	applyDaemonSet(n)
	deployEcho(n)
	load := c.Load(loadOfBoth...)
	worker := c.Node("n2")
	worker.Kubeadm("join")
	awaitDaemonSet(n, "firsthop")
	awaitDaemonSet(n, "echo")
	awaitEcho(worker)
	onWorker := worker.Load(loadOfEcho...)
	onWorker.Await(1000)
	load.Await(100)
	onWorker.Unbroken()
	load.Unbroken()
}
