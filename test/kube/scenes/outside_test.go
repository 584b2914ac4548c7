package scenes

import (
	"fmt"
	"strings"
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
	targets := []string{}
	for _, host := range []string{n.IP, w.IP} {
		targets = append(targets, fmt.Sprintf("connect=%s:30007", host), fmt.Sprintf("echo=%s:30008", host))
	}
	targets = append(targets, "connect="+externalIP+":7", "echo="+externalIP+":7")
	for _, target := range targets {
		_, addr, _ := strings.Cut(target, "=")
		host, port, _ := strings.Cut(addr, ":")
		w.Await("the runtime has "+addr, fmt.Sprintf("firsthop nat | grep -q '%s:%s'", host, port))
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
