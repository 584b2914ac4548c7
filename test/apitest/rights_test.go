package apitest

import (
	"net/http"
	"net/netip"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

const (
	services  = "/api/v1/namespaces/default/services"
	endpoints = "/api/v1/namespaces/default/endpoints"
	slicesOf  = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	only      = "?fieldSelector=metadata.name%3Dkubernetes"
	label     = "?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
	cms       = "/api/v1/namespaces/"
)

// rights is the table of docs/discovery.md: what a real API server with
// --authorization-mode=Node,RBAC answers to a kubelet, to system:kube-proxy
// (bound to system:node-proxier) and to nobody.
var rights = []struct {
	path                string
	node, proxy, nobody int
}{
	{services + "/kubernetes", 200, 403, 403},
	{services + only, 200, 200, 403},
	{endpoints + "/kubernetes", 200, 403, 403},
	{endpoints + only, 403, 200, 403},
	{slicesOf + "/kubernetes", 403, 403, 403},
	{slicesOf + label, 403, 200, 403},
	{cms + "kube-public/configmaps/cluster-info", 403, 403, 200},
	{cms + "kube-system/configmaps/kubeadm-config", 200, 403, 403},
	{cms + "kube-system/configmaps/kube-proxy", 403, 403, 403},
	{cms + "kube-system/configmaps/kubernetes-services-endpoint", 403, 403, 403},
	{cms + "tigera-operator/configmaps/kubernetes-services-endpoint", 403, 403, 403},
	{"/readyz", 200, 200, 200},
	{"/version", 200, 200, 200},
}

func checkRights(t *testing.T, ca *CA, address string) {
	node, proxy, nobody := ca.HTTPClient(t, "system:node:n1", "system:nodes"), ca.HTTPClient(t, "system:kube-proxy"), ca.HTTPClient(t, "")
	for _, r := range rights {
		for who, q := range map[string]struct {
			c    *http.Client
			want int
		}{"a node": {node, r.node}, "kube-proxy": {proxy, r.proxy}, "nobody": {nobody, r.nobody}} {
			if got, body := Get(q.c, address, r.path); got != q.want {
				t.Errorf("%s asks for %s: %d, want %d: %s", who, r.path, got, q.want, body)
			}
		}
	}
}

func TestRightsOfTheFake(t *testing.T) {
	e := []netip.AddrPort{netip.MustParseAddrPort(RealAddress)}
	some := map[string]string{}
	c := &Cluster{CA: NewCA(t), Services: e, Endpoints: e, ConfigMaps: map[string]map[string]string{"kube-public/cluster-info": some, "kube-system/kubeadm-config": some,
		"kube-system/kube-proxy": some, "kube-system/kubernetes-services-endpoint": some, "tigera-operator/kubernetes-services-endpoint": some}}
	at, _ := c.Serve(t, "10.99.0.2:0")
	checkRights(t, c.CA, at.String())
	c.Used = []string{"kube-system/kube-proxy"}
	if code, _ := Get(c.CA.HTTPClient(t, "system:node:n1", "system:nodes"), at.String(), cms+c.Used[0][:11]+"/configmaps/kube-proxy"); code != 200 {
		t.Errorf("a node whose pod uses the ConfigMap gets %d", code)
	}
}

func TestRightsOfTheReal(t *testing.T) {
	ca := NewCA(t)
	StartReal(t, ca)
	admin := ca.HTTPClient(t, "admin", "system:masters")
	Kubeadm(t, admin)
	checkRights(t, ca, RealAddress)

	// The node authorizer lets a kubelet read what pods of its node use.
	Use(t, admin, "n1", "kube-proxy")
	node := ca.HTTPClient(t, "system:node:n1", "system:nodes")
	other := ca.HTTPClient(t, "system:node:n2", "system:nodes")
	const path = cms + "kube-system/configmaps/kube-proxy"
	deadline := time.Now().Add(10 * time.Second) // its graph follows a watch
	for code := 0; code != 200; code, _ = Get(node, RealAddress, path) {
		if time.Now().After(deadline) {
			t.Fatalf("a node whose pod uses the ConfigMap gets %d", code)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if code, _ := Get(other, RealAddress, path); code != 403 {
		t.Errorf("another node gets %d", code)
	}
}
