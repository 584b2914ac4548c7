package scenes

import (
	"slices"

	"github.com/firsthop/firsthop/test/kube/nodes"
)

// applyDaemonSet puts firsthop's runtime on every node, and waits until it is there.
func applyDaemonSet(n *nodes.Node) {
	n.Sh("kubectl apply -k /opt/deploy/runtime")
	awaitDaemonSet(n, "firsthop")
}

// awaitDaemonSet waits until each node has a pod of the present version that is available.
func awaitDaemonSet(n *nodes.Node, name string) {
	n.Await("DaemonSet "+name+" is rolled out", "kubectl -n kube-system rollout status daemonset/"+name+" --timeout=5s")
}

// echoAddr is where the Service of deployEcho is.
const echoAddr = "10.96.7.7:7"

// loadOfBoth is a load for the API server's Service and for deployEcho's; loadOfEcho for the latter alone.
var (
	loadOfEcho = []string{"connect=" + echoAddr, "echo=" + echoAddr}
	loadOfBoth = slices.Concat(loadOfAPI, loadOfEcho)
)

// deployEcho makes a Service with a pod on each node that has none of another load, and waits until it is served.
func deployEcho(n *nodes.Node) {
	n.Put("/root/echo.yaml", echoYAML)
	n.Sh("kubectl apply -f /root/echo.yaml")
	awaitDaemonSet(n, "echo")
	awaitEcho(n)
}

// awaitEcho waits until deployEcho's Service is served on a node: a moment after its pods are ready, and after the runtime
// runs there.
func awaitEcho(n *nodes.Node) {
	n.Await("the Service is served", "timeout 5 bash -c '</dev/tcp/10.96.7.7/7'")
}

const echoYAML = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo, namespace: kube-system}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: fh.test/load:1
        args: [serve]
        readinessProbe: {tcpSocket: {port: 7}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: kube-system}
spec:
  clusterIP: 10.96.7.7
  selector: {app: echo}
  ports: [{port: 7}]
`
