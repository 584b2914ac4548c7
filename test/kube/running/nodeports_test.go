package running

import (
	"fmt"
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// nodePortAddresses: where node ports are served is chosen, by ranges or as what the Node object calls the node's own.
// A family of which no range is given is served everywhere. The runtime is started anew for each choice.
func (f *fixture) nodePortAddresses(t *testing.T) {
	more := []string{"192.168.77.1", "fd00:77::1"} // of the node too, and not of its object
	for i, bits := range []int{32, 128} {
		if err := f.node.AddAddr(fmt.Sprintf("%s/%d", more[i], bits)); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld("node-port-addresses")
	w.svc.Spec.Type = corev1.ServiceTypeNodePort
	w.endpoints = ep("p3")
	w.put(f, f.cluster)
	port := fmt.Sprint(w.svc.Spec.Ports[0].NodePort)
	const served = "p3:80"
	for _, tc := range []struct {
		addresses string
		// By family: at the node's own address, at another one of it, and on loopback.
		own, other, loopback [2]string
	}{
		{"", [2]string{served, served}, [2]string{served, served}, [2]string{served, served}},
		{"primary", [2]string{served, served}, [2]string{refused, refused}, [2]string{refused, refused}},
		{"192.168.77.0/24,fd00:77::/64", [2]string{refused, refused}, [2]string{served, served}, [2]string{refused, refused}},
		{"127.0.0.0/8", [2]string{refused, served}, [2]string{refused, served}, [2]string{served, served}},
		{"fd00:168::/64", [2]string{served, served}, [2]string{served, refused}, [2]string{served, refused}},
	} {
		f.node.stop()
		if tc.addresses == "" {
			f.node.start()
		} else {
			f.node.start("--nodeport-addresses=" + tc.addresses)
		}
		f.fence.await()
		for family := range 2 {
			own, loopback := f.node.IPs[family].String(), []string{"127.0.0.1", "::1"}[family]
			for _, l := range []struct{ from, at, want string }{
				{"node", own, tc.own[family]}, {"pod", own, tc.own[family]}, {"node", more[family], tc.other[family]},
				{"pod", more[family], tc.other[family]}, {"node", loopback, tc.loopback[family]},
			} {
				if got := f.reach(l.from, probe.TCP, net.JoinHostPort(l.at, port), 5); got != l.want {
					t.Errorf("with %q, %s at %s reaches %q, want %q", tc.addresses, l.from, l.at, got, l.want)
				}
			}
			f.see(t, 0, w, tcp("pod", "cluster:80", served), family)
		}
	}
}
