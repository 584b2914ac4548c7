package scenes

import (
	"fmt"
	"testing"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// externalIP is where outsideYAML's Service is for who is sent to a node for it.
const externalIP = "198.51.100.7"

// TestClientsOutside has the packet path serve a client outside of the cluster, without kube-proxy, by every way in: node
// ports of both nodes, of which one has its endpoint elsewhere, and an external IP. It goes on while the runtime is killed,
// restarted and deleted.
func TestClientsOutside(t *testing.T) {
	long(t)
	c := nodes.New(t)
	n := c.Node("n1")
	n.Kubeadm("init", skipKubeProxy)
	w := c.Node("n2")
	w.Kubeadm("join")
	n.Sh("kubectl apply -k /opt/deploy/runtime")
	n.Sh("kubectl -n kube-system set env daemonset/firsthop -c firsthop FIRSTHOP_PACKET_PATH=true")
	awaitDaemonSet(n, "firsthop")
	deployEcho(n)
	n.Put("/root/outside.yaml", outsideYAML)
	n.Sh("kubectl apply -f /root/outside.yaml && kubectl -n kube-system label pod -l app=echo --field-selector spec.nodeName=n2 one=yes")
	c.RouteOutside(externalIP, n)
	targets := []string{"connect=" + externalIP + ":7", "echo=" + externalIP + ":7"}
	n.Await("the external IP is served", "firsthop nat | grep -q "+externalIP+":7")
	for _, node := range []*nodes.Node{n, w} {
		for _, port := range []string{"30007", "30008"} {
			node.Await("node port "+port+" is served", fmt.Sprintf("firsthop nat lookup --from-outside 192.0.2.1 %s:%s | grep -q 10.244.", node.IP, port))
		}
		targets = append(targets, fmt.Sprintf("connect=%s:30007", node.IP), fmt.Sprintf("echo=%s:30008", node.IP))
	}
	load := c.LoadOutside(targets...)
	load.Await(1000)
	for _, node := range []*nodes.Node{n, w} {
		node.Sh("pkill -KILL -x firsthop")
	}
	load.Await(1000)
	awaitDaemonSet(n, "firsthop")
	n.Sh("kubectl -n kube-system rollout restart daemonset/firsthop")
	awaitDaemonSet(n, "firsthop")
	load.Await(1000)
	n.Sh("kubectl -n kube-system delete daemonset/firsthop")
	load.Await(1000)
	load.Unbroken()
}

// outsideYAML are Services of deployEcho's pods for clients outside: of all of them, and of the one on the second node.
const outsideYAML = `apiVersion: v1
kind: Service
metadata: {name: outside, namespace: kube-system}
spec:
  type: NodePort
  externalIPs: ["` + externalIP + `"]
  selector: {app: echo}
  ports: [{port: 7, nodePort: 30007}]
---
apiVersion: v1
kind: Service
metadata: {name: outside-one, namespace: kube-system}
spec:
  type: NodePort
  selector: {app: echo, one: "yes"}
  ports: [{port: 7, nodePort: 30008}]
`
