package cluster

import (
	"fmt"
	"net/netip"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/lab"
)

// NodeConfig says what node to add.
type NodeConfig struct {
	Name string
	Zone string // its label topology.kubernetes.io/zone; "": none
}

// Node is a machine of the cluster: a lab on the hub's bridge, and an object Node that is ready.
type Node struct {
	*lab.Lab
	Name string
	IPs  []netip.Addr // IPv4, IPv6
	// Pods are the addresses that the hub routes here, IPv4 and IPv6: the node's podCIDRs.
	Pods []netip.Prefix

	c *Cluster
}

// AddNode makes a node with its object. Pods of it are pods of its lab, with addresses that Pod returns.
func (c *Cluster) AddNode(cfg NodeConfig) *Node {
	c.t.Helper()
	c.nodes++
	i := c.nodes
	n := &Node{
		Lab: lab.New(c.t), Name: cfg.Name, c: c,
		IPs: []netip.Addr{
			netip.AddrFrom4([4]byte{192, 168, 0, byte(20 + i)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:168::%d", 20+i)),
		},
		Pods: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i)),
		},
	}
	c.must(c.plug(n, fmt.Sprintf("fh-node%d", i)))
	c.createNode(n, cfg.Zone)
	return n
}

// Pod returns the addresses of the node's pod with a number, from 1 to 250: for AddPod, and for endpoints.
func (n *Node) Pod(number int) []netip.Addr {
	v6 := n.Pods[1].Addr().As16()
	v4 := n.Pods[0].Addr().As4()
	v4[3], v6[15] = byte(number), byte(number)
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// createNode creates the object as a kubelet and a cloud would.
func (c *Cluster) createNode(n *Node, zone string) {
	c.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   n.Name,
		Labels: map[string]string{corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux"},
	}}
	if zone != "" {
		node.Labels[corev1.LabelTopologyZone] = zone
	}
	for _, p := range n.Pods {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	for _, ip := range n.IPs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.Name})
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	// The API server takes the status of a new Node, unlike that of other objects.
	_, err := c.Client.CoreV1().Nodes().Create(c.t.Context(), node, metav1.CreateOptions{})
	c.must(err)
}

// Start starts a program on the node, in its network namespace and cgroup. It is killed with the test.
func (n *Node) Start(name, path string, args ...string) *Process {
	n.c.t.Helper()
	return n.c.start(n.Lab, name, path, args...)
}

// StartKubeProxy starts the real kube-proxy in a mode, "iptables" or "nftables". It is ready when its /healthz says so:
// see AwaitHealthy.
func (n *Node) StartKubeProxy(mode string, flags ...string) *Process {
	n.c.t.Helper()
	return n.Start("kube-proxy", n.c.programs.Proxy, append([]string{
		"--kubeconfig=" + n.c.Kubeconfig(KubeProxy, n.c.Servers[0].URL()),
		"--hostname-override=" + n.Name,
		"--proxy-mode=" + mode,
		"--cluster-cidr=" + join(PodCIDRs),
		"--healthz-bind-address=" + netip.AddrPortFrom(n.IPs[0], HealthPort).String(),
		// The sysctls of conntrack belong to the machine's own network namespace and are read-only here.
		"--conntrack-max-per-core=0", "--conntrack-min=0",
	}, flags...)...)
}

// HealthPort is where a service proxy answers /healthz, on the node's first address.
const HealthPort = 10256

// ProgramDir is where the programs of Kubernetes are.
func (c *Cluster) ProgramDir() string { return filepath.Dir(c.programs.Etcd) }

// AddClient adds a client outside of the cluster: a pod of the hub, whose address is known to no node.
func (c *Cluster) AddClient(addrs ...netip.Addr) *lab.Pod {
	c.t.Helper()
	c.clients++
	pod, err := c.Hub.AddPod(fmt.Sprintf("client%d", c.clients), addrs...)
	c.must(err)
	return pod
}
