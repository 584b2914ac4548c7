package running

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/running/probe"
	"github.com/firsthop/firsthop/test/standin"
)

// The node knows the addresses of others, which nobody runs: what is not served there has no route.
func TestNodes(t *testing.T) {
	f := newFixture(t)
	t.Run("node ports at other nodes", func(t *testing.T) { f.otherNodes(t) })
	t.Run("a cluster IP of the host's own", func(t *testing.T) { f.leftToHost(t) })
}

func (f *fixture) otherNodes(t *testing.T) {
	ctx, nodes := t.Context(), f.cluster.Client.CoreV1().Nodes()
	set := func(name string, addrs ...string) {
		t.Helper()
		n, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			if n, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		n.Status.Addresses = nil
		for i, a := range addrs {
			kind := []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeInternalIP, corev1.NodeExternalIP}[i]
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
		}
		if _, err := nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	set(there, "192.0.2.201", "fd00:2::201", "192.0.2.211")
	set("elsewhere", "192.0.2.202", "fd00:2::202")
	w := newWorld("other-nodes")
	w.svc.Spec.Type = nodePort
	w.svc.Spec.Ports = append(w.svc.Spec.Ports, sp("dns", corev1.ProtocolUDP, 53, 53))
	w.endpoints = ep("p1", "p3")
	w.put(f, f.cluster)
	f.fence.await()
	at := func(from string, proto probe.Proto, host, want string) {
		t.Helper()
		port := w.svc.Spec.Ports[0].NodePort
		if proto != probe.TCP {
			port = w.svc.Spec.Ports[1].NodePort
		}
		target := net.JoinHostPort(host, fmt.Sprint(port))
		eventually(t, "what is known of nodes comes by another watch", func() string {
			if got := f.reach(from, proto, target, 20); got != want {
				return fmt.Sprintf("%s from %s to %s reaches %q, want %q", proto, from, target, got, want)
			}
			return ""
		})
	}
	for _, from := range []string{"pod", "node"} {
		for _, host := range []string{"192.0.2.201", "192.0.2.211", "192.0.2.202", "fd00:2::201", "fd00:2::202"} {
			at(from, probe.TCP, host, "p1:80 p3:80")
			at(from, probe.UDP, host, "p1:53 p3:53")
		}
		at(from, probe.TCP, "192.0.2.203", unserved)
	}
	t.Run("lookup", func(t *testing.T) {
		target := fmt.Sprintf("192.0.2.201:%d", w.svc.Spec.Ports[0].NodePort)
		out, code := f.node.command("nat", "lookup", target)
		if code != 0 || !strings.Contains(out, "an address of another node") || !strings.Contains(out, "default/other-nodes:http") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})

	w.svc.Spec.ExternalTrafficPolicy = local
	w.put(f, f.cluster)
	f.fence.await()
	for _, from := range []string{"pod", "node"} {
		at(from, probe.TCP, "192.0.2.201", "p3:80")
		at(from, probe.UDP, "fd00:2::201", "p3:53")
		at(from, probe.TCP, "192.0.2.202", unserved)
		at(from, probe.TCP, f.node.IPs[0].String(), "p1:80 p3:80")
	}

	set(there, "192.0.2.221")
	at("pod", probe.TCP, "192.0.2.221", "p3:80")
	at("pod", probe.TCP, "192.0.2.201", unserved)
	w.svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	w.put(f, f.cluster)
	at("pod", probe.TCP, "192.0.2.202", "p1:80 p3:80")
	if err := nodes.Delete(ctx, there, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	at("pod", probe.TCP, "192.0.2.221", unserved)
	at("pod", probe.TCP, "192.0.2.202", "p1:80 p3:80")
}

// leftToHost: NodeLocal DNSCache in its usual form has the cluster IP of the cluster's DNS on an interface of its own.
func (f *fixture) leftToHost(t *testing.T) {
	w := newWorld("dns")
	w.endpoints = ep("p3")
	w.put(f, f.cluster)
	f.fence.await()
	f.see(t, 0, w, tcp("pod", "cluster:80", "p3:80"), 0)
	ip := netip.MustParseAddr(w.svc.Spec.ClusterIPs[0])
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns"}} // not every kernel has dummy devices
	err := f.node.Do(func() error {
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(ip.String() + "/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{80, 8080} {
		e, err := standin.StartTCPEcho(f.node.Lab, "cache", netip.AddrPortFrom(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
	}
	reaches := func(from string, port int, want string) {
		t.Helper()
		target := fmt.Sprintf("%s:%d", ip, port)
		eventually(t, "wait for the interface to be noticed", func() string {
			if got := f.reach(from, probe.TCP, target, 5); got != want {
				return fmt.Sprintf("%s at %s reaches %q, want %q", from, target, got, want)
			}
			return ""
		})
	}
	for _, from := range []string{"pod", "node"} {
		reaches(from, 80, fmt.Sprintf("%s:80", ip)) // what listens there says where it was reached
		reaches(from, 8080, fmt.Sprintf("%s:8080", ip))
		f.see(t, 1, w, tcp(from, "cluster:80", "p3:80"), 1) // the other family
	}
	if out, _ := f.node.command("status"); !strings.Contains(out, "left to what listens there") {
		t.Errorf("status says nothing of it:\n%s", out)
	}
	if err := f.node.Do(func() error { return netlink.LinkDel(link) }); err != nil {
		t.Fatal(err)
	}
	reaches("pod", 80, "p3:80")
	reaches("node", 8080, refused)
}
