package kube

import (
	"bytes"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Where collections are.
const (
	Services   = "/api/v1/namespaces/default/services"
	Slices     = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	Nodes      = "/api/v1/nodes"
	Pods       = "/api/v1/namespaces/default/pods"
	SystemPods = "/api/v1/namespaces/kube-system/pods"
	Accounts   = "/api/v1/namespaces/kube-system/serviceaccounts"
)

// Serve makes a Service with a cluster IP, and the slice NAME-1 with its one backend.
func (c *Client) Serve(name string, vip, backend netip.AddrPort, proto corev1.Protocol) {
	c.t.Helper()
	c.Create(Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: vip.Addr().String(), Ports: []corev1.ServicePort{{Name: "p", Protocol: proto, Port: int32(vip.Port())}}},
	}, nil)
	port, portName := int32(backend.Port()), "p"
	c.Create(Slices, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{backend.Addr().String()}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &proto, Port: &port}},
	}, nil)
}

// Leave takes all backends of a Service away.
func (c *Client) Leave(name string) {
	c.t.Helper()
	c.Patch(Slices+"/"+name+"-1", `{"endpoints":null}`)
}

// AddNode makes the Node.
func (c *Client) AddNode() {
	c.t.Helper()
	c.Create(Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: Node}}, nil)
	c.Patch(Nodes+"/"+Node+"/status", `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.10"}]}}`)
}

// Says is what firsthop says on the Node: its label and its condition.
func (c *Client) Says() (proxy string, ready corev1.NodeCondition) {
	c.t.Helper()
	var n corev1.Node
	c.Get(Nodes+"/"+Node, &n)
	for _, cond := range n.Status.Conditions {
		if cond.Type == "FirsthopReady" {
			ready = cond
		}
	}
	return n.Labels["firsthop.io/proxy"], ready
}

// collections are where objects of cluster-wide kinds are made.
var collections = map[string]string{
	"ClusterRole":                      "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding":               "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"ValidatingAdmissionPolicy":        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
	"ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}

// Apply creates what a manifest has.
func (c *Client) Apply(manifest []byte) {
	c.t.Helper()
	for _, doc := range bytes.Split(manifest, []byte("\n---\n")) {
		var object map[string]any
		must(c.t, yaml.Unmarshal(doc, &object))
		kind, _ := object["kind"].(string)
		if collections[kind] == "" {
			c.t.Fatalf("the manifest has a %q", kind)
		}
		c.Create(collections[kind]+"?fieldValidation=Strict", object, nil)
	}
}

// Bind gives a user the rights of a ClusterRole.
func (c *Client) Bind(user, role string) {
	c.t.Helper()
	c.Create(collections["ClusterRoleBinding"], map[string]any{
		"metadata": map[string]any{"name": user + "-" + role},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}},
	}, nil)
}
