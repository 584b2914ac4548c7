package query

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/test/apitest"
)

const (
	node  = "system:node:n1"
	nodes = "system:nodes"
)

func ep(s string) apiserver.Endpoint {
	e, reason := apiserver.ParseEndpoint(s)
	if reason != "" {
		panic(s + " " + reason)
	}
	return e
}

// newCluster has two API servers behind the Service, and kubeadm's ConfigMaps.
func newCluster(t *testing.T) *apitest.Cluster {
	c := &apitest.Cluster{
		CA:        apitest.NewCA(t),
		Services:  []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.99.0.1:6443"), netip.MustParseAddrPort("10.99.0.2:6443")},
	}
	c.ConfigMaps = map[string]map[string]string{
		"kube-public/cluster-info":                 {"kubeconfig": "apiVersion: v1\nkind: Config\nclusters: [{name: \"\", cluster: {server: \"https://10.99.0.8:6443\"}}]\n"},
		"kube-system/kubeadm-config":               {"ClusterConfiguration": "kind: ClusterConfiguration\ncontrolPlaneEndpoint: api.cluster.example\nnetworking: {serviceSubnet: \"10.96.0.0/16,fd00:96::/112\"}\n"},
		"kube-system/kube-proxy":                   {"kubeconfig.conf": apitest.Kubeconfig("https://api.cluster.example:6443")},
		"kube-system/kubernetes-services-endpoint": {"KUBERNETES_SERVICE_HOST": "10.99.0.9", "KUBERNETES_SERVICE_PORT": "6443"},
	}
	return c
}

// credential is the kubeconfig of a user, as loaded from a file.
func credential(t *testing.T, kubeconfig string) *sources.Credential {
	t.Helper()
	root := t.TempDir()
	apitest.Write(t, root, "/k.conf", kubeconfig)
	c, err := sources.LoadKubeconfig(root, "/k.conf")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func notes(a Answer) string {
	var out []string
	for _, f := range a.Findings {
		out = append(out, string(f.Source)+": "+strings.Join(f.Notes, "; "))
	}
	return strings.Join(out, "\n")
}

func finding(a Answer, s apiserver.Source) sources.Finding {
	for _, f := range a.Findings {
		if f.Source == s {
			return f
		}
	}
	return sources.Finding{}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAddressesAsEachIdentity(t *testing.T) {
	services, endpoints := []string{"10.96.0.1:443"}, []string{"10.99.0.1:6443", "10.99.0.2:6443"}
	for name, tc := range map[string]struct {
		user                string
		groups              []string
		services, endpoints []string
		says                string
	}{
		"a kubelet gets both objects":            {node, []string{nodes}, services, endpoints, ""},
		"kube-proxy's role lists them":           {"system:kube-proxy", nil, services, endpoints, ""},
		"an administrator":                       {"admin", []string{"system:masters"}, services, endpoints, ""},
		"somebody without any right is told why": {"nobody", nil, nil, nil, `403 services "kubernetes" is forbidden`},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			at, _ := c.Serve(t, "10.99.0.1:0")
			cred := credential(t, c.CA.Kubeconfig(t, "https://"+at.String(), tc.user, tc.groups...))
			a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{{Addr: at}}})
			f := a.Findings[0]
			if !slices.Equal(apitest.Strings(f.Services), tc.services) || !slices.Equal(apitest.Strings(f.Endpoints), tc.endpoints) || a.Complete() != (tc.services != nil) {
				t.Errorf("got %v", f)
			}
			if !strings.Contains(notes(a), tc.says) {
				t.Errorf("notes lack %q:\n%s", tc.says, notes(a))
			}
			if a.Complete() && slices.ContainsFunc(c.Requests(), func(r string) bool { return strings.Contains(r, "configmaps") }) {
				t.Errorf("asked on after a complete answer: %q", c.Requests())
			}
		})
	}
}

func TestAddressesThoroughly(t *testing.T) {
	c := newCluster(t)
	c.Used = []string{"kube-system/kube-proxy"} // a pod of this node uses it
	at, _ := c.Serve(t, "10.99.0.1:0")
	cred := credential(t, c.CA.Kubeconfig(t, "https://"+at.String(), node, nodes))
	a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{{Addr: at}}, Thorough: true})
	for s, want := range map[apiserver.Source]string{
		apiserver.SourceAPI:              "[10.96.0.1:443] [10.99.0.1:6443 10.99.0.2:6443]",
		apiserver.SourceClusterInfo:      "[] [10.99.0.8:6443]", // anonymously: a node is refused
		apiserver.SourceKubeadmConfig:    "[10.96.0.1:443] [api.cluster.example:6443]",
		apiserver.SourceKubeProxy:        "[] [api.cluster.example:6443]",
		apiserver.SourceServicesEndpoint: "[] []",
	} {
		f := finding(a, s)
		if got := fmt.Sprint(f.Services, f.Endpoints); got != want {
			t.Errorf("%s gives %s, want %s; %q", s, got, want, f.Notes)
		}
	}
	if n := finding(a, apiserver.SourceServicesEndpoint).Notes; !strings.Contains(strings.Join(n, " "), "403") {
		t.Errorf("refused, but the notes are %q", n)
	}
}

func TestAddressesGoesOnToTheNextCredential(t *testing.T) {
	c := newCluster(t)
	c.NoAnonymous = true
	at, _ := c.Serve(t, "10.99.0.1:0")
	other := apitest.NewCA(t)
	expired := credential(t, strings.Replace(apitest.Kubeconfig("https://"+at.String()), "Y2E=", base64.StdEncoding.EncodeToString(c.CA.PEM), 1))
	foreign := credential(t, other.Kubeconfig(t, "https://"+at.String(), node, nodes))
	good := credential(t, c.CA.Kubeconfig(t, "https://"+at.String(), node, nodes))
	a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{foreign, expired, good}, Candidates: []apiserver.Endpoint{{Addr: at}}})
	if !a.Complete() {
		t.Errorf("got %+v", a)
	}
	for _, want := range []string{"certificate signed by unknown authority", "401"} {
		if !strings.Contains(notes(a), want) {
			t.Errorf("notes lack %q:\n%s", want, notes(a))
		}
	}
}

func TestAddressesSendsNoTokenToAnUnknownServer(t *testing.T) {
	ours, theirs := newCluster(t), newCluster(t)
	theirs.Tokens = map[string]string{"secret": "system:kube-proxy"}
	at, _ := theirs.Serve(t, "10.99.0.1:0")
	dir := t.TempDir()
	apitest.Write(t, dir, "token", "secret")
	apitest.Write(t, dir, "ca.crt", string(ours.CA.PEM))
	cred, err := sources.ServiceAccount(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{{Addr: at}}})
	if !a.Findings[0].Empty() || len(theirs.Requests()) > 0 {
		t.Errorf("got %+v; the unknown saw %q", a, theirs.Requests())
	}
	// The same token is good at home, at an address that the certificate does not name.
	ours.Tokens = theirs.Tokens
	home, _ := ours.Serve(t, "10.99.0.2:0")
	if a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{{Addr: home}}}); !a.Complete() {
		t.Errorf("got %s", notes(a))
	}
}

func TestAddressesIsNotHeldUpByDeadAndSilentServers(t *testing.T) {
	c := newCluster(t)
	at, _ := c.Serve(t, "[fd00:99::1]:0")
	cred := credential(t, c.CA.Kubeconfig(t, "https://api.cluster.example:6443", node, nodes))
	start := time.Now()
	a := Addresses(within(t, 20*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{
		ep(apitest.Silent4 + ":6443"), ep(apitest.Unreachable4 + ":6443"), ep("10.99.0.1:1"), {Addr: at}, ep("unresolved.example:6443")}})
	if d := time.Since(start); !a.Complete() || d > 5*time.Second {
		t.Errorf("after %v: %s", d, notes(a))
	}
}

func TestASilentServerLeavesTimeForTheNextCredential(t *testing.T) {
	c := newCluster(t)
	at, _ := c.Serve(t, "10.99.0.1:0")
	foreign := credential(t, apitest.NewCA(t).Kubeconfig(t, "https://x:1", node, nodes))
	good := credential(t, c.CA.Kubeconfig(t, "https://x:1", node, nodes))
	a := Addresses(within(t, 2*time.Second), Config{Credentials: []*sources.Credential{foreign, good}, Candidates: []apiserver.Endpoint{ep(apitest.Silent4 + ":6443"), {Addr: at}}})
	if !a.Complete() {
		t.Error(notes(a))
	}
}

func TestAddressesEndsWithItsContext(t *testing.T) {
	c := newCluster(t)
	cred := credential(t, c.CA.Kubeconfig(t, "https://x:1", node, nodes))
	start := time.Now()
	a := Addresses(within(t, 100*time.Millisecond), Config{Credentials: []*sources.Credential{cred, cred}, Candidates: []apiserver.Endpoint{ep(apitest.Silent4 + ":6443")}})
	if d := time.Since(start); d > 5*time.Second || !strings.Contains(notes(a), "in time") {
		t.Errorf("after %v: %s", d, notes(a))
	}
	if len(a.Findings) != 5 {
		t.Errorf("%d findings: every source is to be listed", len(a.Findings))
	}
}

// An exec plugin knows nothing of contexts.
func TestAddressesLeavesASlowExecPluginBehind(t *testing.T) {
	c := newCluster(t)
	at, _ := c.Serve(t, "10.99.0.1:0")
	dir := t.TempDir()
	apitest.Write(t, dir, "k.conf", strings.Replace(apitest.Kubeconfig("https://"+at.String()), "{token: t}", "{exec: {apiVersion: client.authentication.k8s.io/v1, command: sleep, args: ['3'], interactiveMode: Never}}", 1))
	apitest.Write(t, dir, "ca", string(c.CA.PEM))
	cred, err := sources.LoadKubeconfig("", dir+"/k.conf")
	if err != nil {
		t.Fatal(err)
	}
	cred.Config.CAData = c.CA.PEM
	start := time.Now()
	a := Addresses(within(t, 200*time.Millisecond), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{{Addr: at}}})
	if d := time.Since(start); d > 2*time.Second || a.Complete() {
		t.Errorf("after %v: %s", d, notes(a))
	}
}

func TestAddressesWithoutMeansSaysSo(t *testing.T) {
	c := newCluster(t)
	cred := credential(t, c.CA.Kubeconfig(t, "https://x:1", node, nodes))
	if a := Addresses(t.Context(), Config{Candidates: []apiserver.Endpoint{ep("10.0.0.1:1")}}); !strings.Contains(notes(a), "no credentials") {
		t.Error(notes(a))
	}
	if a := Addresses(t.Context(), Config{Credentials: []*sources.Credential{cred}}); !strings.Contains(notes(a), "no address to ask at") {
		t.Error(notes(a))
	}
}

// sick is an API server of the cluster that answers every question so.
func sick(t *testing.T, c *apitest.Cluster, address string, h http.HandlerFunc) apiserver.Endpoint {
	return apiserver.Endpoint{Addr: apitest.ServeTLS(t, address, c.CA.Server(t, apitest.Names...), h)}
}

func TestAddressesASickServerDoesNotHideAHealthyOne(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, body) }
	}
	for sentence, h := range map[string]http.HandlerFunc{
		"500": status(500, `{"message":"etcdserver: request timed out"}`),
		"503": status(503, "apiserver not ready"),
		"429": status(429, `{"message":"too many requests"}`),
		"404": status(404, "404 page not found"),
		"302": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		},
		"200 with a page":          status(200, "<html>maintenance</html>"),
		"200 with nothing":         status(200, ""),
		"200 with an empty object": status(200, "{}"),
		"a closed connection":      func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"silence":                  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"the Service, and 500 for the endpoints": func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "endpoint") {
				w.WriteHeader(500)
				return
			}
			io.WriteString(w, `{"spec":{"clusterIP":"10.96.0.1","ports":[{"name":"https","port":443}]}}`)
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			c := newCluster(t)
			asked := make(chan struct{}, 16)
			bad := sick(t, c, "10.99.0.1:0", func(w http.ResponseWriter, r *http.Request) { asked <- struct{}{}; h(w, r) })
			inner := http.Handler(c)
			good := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.2:0", c.CA.Server(t, apitest.Names...), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-asked // the sick one is the first
				asked <- struct{}{}
				inner.ServeHTTP(w, r)
			}))}
			c.Tokens = map[string]string{"t": "system:kube-proxy"}
			cred := credential(t, apitest.Pinned("https://"+bad.String(), c.CA.PEM))
			a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{cred}, Candidates: []apiserver.Endpoint{bad, good}})
			if !a.Complete() {
				t.Errorf("got %+v\n%s", a, notes(a))
			}
		})
	}
}

func TestAddressesBelievesNobodyThatCannotBeVerified(t *testing.T) {
	ours, theirs := newCluster(t), newCluster(t)
	theirs.Services = []netip.AddrPort{netip.MustParseAddrPort("10.66.0.1:443")}
	var at []apiserver.Endpoint
	for _, a := range []string{"10.99.0.1:0", "10.99.0.2:0", "10.99.0.3:0"} {
		addr, _ := theirs.Serve(t, a)
		at = append(at, apiserver.Endpoint{Addr: addr})
	}
	server := "https://" + at[0].String()
	for sentence, kc := range map[string]string{
		"with our CA":       ours.CA.Kubeconfig(t, server, node, nodes),
		"with their CA":     theirs.CA.Kubeconfig(t, server, node, nodes),
		"without verifying": apitest.Without(theirs.CA.Kubeconfig(t, server, node, nodes), "insecure-skip-tls-verify: true"),
	} {
		a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{credential(t, kc)}, Candidates: at, Trust: &apiserver.Trust{CA: ours.CA.PEM}})
		if f := a.Findings[0]; !f.Empty() {
			t.Errorf("%s: believed %v", sentence, f)
		}
	}
	insecure := credential(t, apitest.Without(theirs.CA.Kubeconfig(t, server, node, nodes), "insecure-skip-tls-verify: true"))
	if a := Addresses(within(t, 5*time.Second), Config{Credentials: []*sources.Credential{insecure}, Candidates: at}); !a.Findings[0].Empty() || !strings.Contains(notes(a), "no CA certificate is known") {
		t.Errorf("believed:\n%s", notes(a))
	}
	if r := theirs.Requests(); len(r) > 0 {
		t.Errorf("they were asked %q", r)
	}
}

// FuzzDecode feeds what servers answer to the decoders: none may panic.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"spec":{"clusterIP":"10.96.0.1","ports":[{"name":"https","port":443}]}}`,
		`{"subsets":[{"addresses":[{"ip":"10.0.0.1"}],"ports":[{"port":6443}]}]}`,
		`{"items":[{"endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"name":"https","port":6443}]}]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		var out []apiserver.Endpoint
		add := func(list []apiserver.Endpoint, _ error) { out = append(out, list...) }
		var service corev1.Service
		if json.Unmarshal([]byte(in), &service) == nil {
			services, _ := serviceAddrs(&service)
			for _, a := range services {
				apitest.CheckAddr(t, a)
			}
		}
		//lint:ignore SA1019 a kubelet may read nothing else
		var one corev1.Endpoints
		if json.Unmarshal([]byte(in), &one) == nil {
			add(endpointAddrs(&one))
		}
		var list discoveryv1.EndpointSliceList
		if json.Unmarshal([]byte(in), &list) == nil {
			add(decoded(list.Items, nil, sliceAddrs))
		}
		for _, e := range out {
			apitest.CheckAddr(t, e.Addr)
		}
	})
}
