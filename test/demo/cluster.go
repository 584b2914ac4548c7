package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/standin"
)

// nodeName is how the cluster calls the machine.
const nodeName = "demo"

// The Service that clients of the demo use.
const (
	shopName = "default/shop"
	shopIP   = "10.96.0.80"
	podPort  = 8080
)

// createCluster puts into the API what the runtime needs: the node, the API service, and the Service shop with two pods.
func (m *machine) createCluster() error {
	m.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	dual := corev1.IPFamilyPolicyRequireDualStack
	m.put("services", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeClusterIP,
			ClusterIP: serviceIP4, ClusterIPs: []string{serviceIP4, serviceIP6},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, IPFamilyPolicy: &dual,
			Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443}},
		},
	})
	var v4, v6 []string
	for i := range m.servers {
		addrs := serverAddrs(i)
		v4, v6 = append(v4, addrs[0].Addr().String()), append(v6, addrs[1].Addr().String())
	}
	m.put("endpointslices", slice("kubernetes", "kubernetes", discoveryv1.AddressTypeIPv4, "https", 6443, v4...))
	m.put("endpointslices", slice("kubernetes-v6", "kubernetes", discoveryv1.AddressTypeIPv6, "https", 6443, v6...))
	m.put("services", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeClusterIP,
			ClusterIP: shopIP, ClusterIPs: []string{shopIP}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	})
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: demo
clusters: [{name: demo, cluster: {server: "https://%s:443", certificate-authority: %s}}]
users: [{name: demo, user: {token: demo}}]
contexts: [{name: demo, context: {cluster: demo, user: demo}}]
`, serviceIP4, filepath.Join(m.dir, "ca.crt"))
	if err := os.WriteFile(filepath.Join(m.dir, "kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		return err
	}
	for i := range 2 {
		if err := m.startPod(i + 1); err != nil {
			return err
		}
	}
	m.setShop(1, 2)
	return nil
}

// put makes the API servers know an object.
func (m *machine) put(resource string, object any) {
	data, err := json.Marshal(object)
	if err != nil {
		panic(err) // Kubernetes' types are made for it
	}
	var o standin.Object
	if err := json.Unmarshal(data, &o); err != nil {
		panic(err)
	}
	m.objects.Put(resource, o)
}

// slice makes an EndpointSlice.
func slice(name, service string, family discoveryv1.AddressType, portName string, port int32, ips ...string) *discoveryv1.EndpointSlice {
	ready, tcp := true, corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

// setShop makes the pods with these numbers the endpoints of the Service shop.
func (m *machine) setShop(numbers ...int) {
	var ips []string
	for _, n := range numbers {
		ips = append(ips, podIP(n).String())
	}
	m.put("endpointslices", slice("shop", "shop", discoveryv1.AddressTypeIPv4, "", podPort, ips...))
}

func podName(n int) string   { return fmt.Sprintf("shop-%d", n) }
func podIP(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("192.0.2.10%d", n)) }
func podAddr(n int) string   { return netip.AddrPortFrom(podIP(n), podPort).String() }
func greeting(n int) string  { return "hello from pod " + podName(n) }

// pod is a web server that says its name.
type pod struct {
	http  http.Server
	ended chan struct{}
}

// startPod starts pod number n.
func (m *machine) startPod(n int) error {
	if err := m.lab.AddAddr(podIP(n).String() + "/32"); err != nil {
		return err
	}
	ln, err := m.lab.Listen("tcp", podAddr(n))
	if err != nil {
		return fmt.Errorf("start pod %s: %w", podName(n), err)
	}
	p := &pod{ended: make(chan struct{})}
	p.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, greeting(n)) })
	go func() {
		defer close(p.ended)
		_ = p.http.Serve(ln)
	}()
	m.pods[podName(n)] = p
	return nil
}

// close ends the pod and its connections.
func (p *pod) close() {
	_ = p.http.Close()
	<-p.ended
}

// stopPod ends pod number n, after what it has begun to answer.
func (m *machine) stopPod(ctx context.Context, n int) error {
	p := m.pods[podName(n)]
	delete(m.pods, podName(n))
	err := p.http.Shutdown(ctx)
	p.close()
	return err
}

// clientLog is where the client of the demo writes each answer.
const clientLog = "client.log"

// client is a loop that connects to the Service shop again and again.
const client = `while :; do curl -sS -m 10 http://` + shopIP + `/ || echo "FAILED: curl exits with $?"; done`

// answers returns what the client has written so far, complete lines only.
func (m *machine) answers() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(m.dir, clientLog))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(data), "\n")
	return lines[:len(lines)-1], nil
}
