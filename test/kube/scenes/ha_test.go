package scenes

import (
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// shutdownDelay has an API server that is stopped listen on for a while, not ready, so that nodes can know. By default it
// refuses connections before anybody can: see docs/decisions/0022.
const shutdownDelay = "apiServer: {extraArgs: [{name: shutdown-delay-duration, value: 5s}]}\n"

// TestHighAvailabilityWithoutLoadBalancer has the Service IP as kubeadm's controlPlaneEndpoint: every kubelet and component
// connects to it, from its first start.
func TestHighAvailabilityWithoutLoadBalancer(t *testing.T) {
	long(t)
	c := nodes.New(t)
	c.Endpoint = nodes.API
	c.InitConfig = strings.Replace(c.InitConfig, "networking:", shutdownDelay+"networking:", 1)
	first := c.Node("n1")
	installBeforeKubeadm(first)
	first.Kubeadm("init", skipKubeProxy, "--upload-certs")
	applyDaemonSet(first)
	deployEcho(first)
	// Where no kubelet says that it is away, a node that has lost its power is among the endpoints for a while.
	first.Sh(`kubectl -n kube-system patch daemonset echo -p '{"spec":{"template":{"spec":{"nodeSelector":{"node-role.kubernetes.io/control-plane":""}}}}}'`)
	awaitDaemonSet(first, "echo")
	load := first.Load(append([]string{"connect=" + nodes.API}, loadOfEcho...)...)

	worker, second := c.Node("n2"), c.Node("n3")
	for _, n := range []*nodes.Node{worker, second} {
		n.Sh("firsthop init --service-ips " + nodes.API + " --endpoints " + first.IP + ":6443")
	}
	worker.Kubeadm("join")
	second.Kubeadm("join", nodes.ControlPlane)
	first.Await("both are control planes", "test $(kubectl get nodes -l node-role.kubernetes.io/control-plane -o name | wc -l) = 2")
	awaitDaemonSet(first, "firsthop")
	awaitDaemonSet(first, "echo")
	awaitEcho(second)
	onSecond := second.Load(append([]string{"api=https://" + nodes.API, "connect=" + nodes.API}, loadOfEcho...)...)
	onSecond.Await(100)

	// The worker comes back while the API server is away that it joined by.
	worker.Cut()
	first.Sh("mv /etc/kubernetes/manifests/kube-apiserver.yaml /root/")
	first.Await("its API server is gone", "! ss -Hltn sport = :6443 | grep -q .")
	worker.Boot()
	worker.Await("the worker connects to the API server", "timeout 5 bash -c '</dev/tcp/10.96.0.1/443'")
	worker.Await("the worker's kubelet is connected by the Service IP", "ss -Htn state established dst 10.96.0.1 | grep -q . || ss -Htn state established dst "+second.IP+" | grep -q .")
	load.Await(1000)
	onSecond.Await(1000)
	first.Sh("mv /root/kube-apiserver.yaml /etc/kubernetes/manifests/")
	first.Await("its API server is back", "kubectl --server https://"+first.IP+":6443 get --raw /readyz")
	load.Await(100)
	onSecond.Unbroken()
	load.Unbroken()
}
