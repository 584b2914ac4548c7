package apitest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Names are in every API server's certificate.
var Names = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}

// Cluster is what the API knows.
type Cluster struct {
	CA *CA
	// Services are the addresses of default/kubernetes, Endpoints its endpoints.
	Services  []netip.AddrPort
	Endpoints []netip.AddrPort
	// ConfigMaps are by "namespace/name".
	ConfigMaps map[string]map[string]string
	// Used are the ConfigMaps that pods of the node use.
	Used []string
	// Tokens are bearer tokens, by token the user.
	Tokens map[string]string
	// NoAnonymous is --anonymous-auth=false.
	NoAnonymous bool
	// Ready is the status of /readyz; 0 means 200.
	Ready int
	// ReadyAfter is how long /readyz takes.
	ReadyAfter time.Duration

	mu  sync.Mutex
	log []string
}

// Requests lists "user path" of every request so far.
func (c *Cluster) Requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.log)
}

// Serve runs an API server of the cluster at address (port 0: any), until
// the test ends or stop is called. extra are names in its certificate beside Names.
func (c *Cluster) Serve(t testing.TB, address string, extra ...string) (at netip.AddrPort, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA.PEM)
	srv := &http.Server{
		Handler: c,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{c.CA.Server(t, append(slices.Clone(Names), extra...)...)},
			ClientCAs:    pool,
			ClientAuth:   tls.VerifyClientCertIfGiven,
		},
		ErrorLog: log.New(io.Discard, "", 0), // probes hang up on purpose
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.ServeTLS(l, "", "")
	}()
	stop = sync.OnceFunc(func() { srv.Close(); <-done })
	t.Cleanup(stop)
	return l.Addr().(*net.TCPAddr).AddrPort(), stop
}

const anonymous = "system:anonymous"

func (c *Cluster) user(r *http.Request) (string, []string) {
	if len(r.TLS.PeerCertificates) > 0 {
		s := r.TLS.PeerCertificates[0].Subject
		return s.CommonName, s.Organization
	}
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return c.Tokens[token], nil
	}
	return anonymous, nil
}

func (c *Cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, groups := c.user(r)
	c.mu.Lock()
	c.log = append(c.log, user+" "+r.URL.RequestURI())
	c.mu.Unlock()
	switch {
	case user == "", user == anonymous && c.NoAnonymous:
		status(w, http.StatusUnauthorized, "Unauthorized")
		return
	case r.URL.Path == "/readyz" && c.ReadyAfter > 0:
		select {
		case <-time.After(c.ReadyAfter):
			io.WriteString(w, "ok")
		case <-r.Context().Done():
		}
		return
	case r.URL.Path == "/readyz" && c.Ready > 0:
		status(w, c.Ready, "not ready")
		return
	case r.URL.Path == "/readyz", r.URL.Path == "/version":
		io.WriteString(w, "ok")
		return
	}
	namespace, resource, name, ok := parse(r.URL.Path)
	if !ok {
		status(w, http.StatusNotFound, "the server could not find the requested resource")
		return
	}
	if !c.may(user, groups, namespace, resource, name) {
		status(w, http.StatusForbidden, fmt.Sprintf("%s %q is forbidden: User %q cannot get resource %q in API group \"\" in the namespace %q", resource, name, user, resource, namespace))
		return
	}
	obj := c.object(namespace, resource, orName(name, resource))
	if obj == nil {
		status(w, http.StatusNotFound, fmt.Sprintf("%s %q not found", resource, name))
		return
	}
	if name == "" {
		obj = map[string]any{"items": []any{obj}}
	}
	json.NewEncoder(w).Encode(obj)
}

func orName(name, resource string) string {
	if name == "" && resource != "configmaps" {
		return "kubernetes" // the selectors ask for nothing else
	}
	return name
}

// parse splits /api/v1/namespaces/NS/RESOURCE[/NAME], and the same of discovery.k8s.io.
func parse(path string) (namespace, resource, name string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/api/v1/namespaces/")
	if !ok {
		if rest, ok = strings.CutPrefix(path, "/apis/discovery.k8s.io/v1/namespaces/"); !ok {
			return
		}
	}
	p := strings.Split(rest, "/")
	if len(p) < 2 || len(p) > 3 {
		return "", "", "", false
	}
	if len(p) == 3 {
		name = p[2]
	}
	return p[0], p[1], name, true
}

// may is what the real one answered, see docs/discovery.md.
func (c *Cluster) may(user string, groups []string, namespace, resource, name string) bool {
	key := namespace + "/" + name
	switch {
	case slices.Contains(groups, "system:masters"):
		return true
	case slices.Contains(groups, "system:nodes"):
		switch resource {
		case "services":
			return true
		case "endpoints":
			return name != ""
		case "configmaps":
			return key == "kube-system/kubeadm-config" || slices.Contains(c.Used, key)
		}
	case user == "system:kube-proxy":
		return name == "" && (resource == "services" || resource == "endpoints" || resource == "endpointslices")
	case user == anonymous:
		return resource == "configmaps" && key == "kube-public/cluster-info"
	}
	return false
}

func (c *Cluster) object(namespace, resource, name string) map[string]any {
	port := func(p uint16) []any {
		return []any{map[string]any{"name": "https", "protocol": "TCP", "port": p}}
	}
	switch {
	case resource == "configmaps":
		data, ok := c.ConfigMaps[namespace+"/"+name]
		if !ok {
			return nil
		}
		return map[string]any{"kind": "ConfigMap", "data": data}
	case namespace != "default" || name != "kubernetes":
		return nil
	case resource == "services" && len(c.Services) > 0:
		var ips []string
		for _, s := range c.Services {
			ips = append(ips, s.Addr().String())
		}
		return map[string]any{"kind": "Service", "spec": map[string]any{
			"clusterIP": ips[0], "clusterIPs": ips, "ports": port(c.Services[0].Port())}}
	case resource == "endpoints" && len(c.Endpoints) > 0:
		var subsets []any
		for _, e := range c.Endpoints {
			subsets = append(subsets, map[string]any{
				"addresses": []any{map[string]any{"ip": e.Addr().String()}}, "ports": port(e.Port())})
		}
		return map[string]any{"kind": "Endpoints", "subsets": subsets}
	case resource == "endpointslices" && len(c.Endpoints) > 0:
		var eps []any
		for _, e := range c.Endpoints {
			eps = append(eps, map[string]any{"addresses": []string{e.Addr().String()}, "conditions": map[string]any{"ready": true}})
		}
		return map[string]any{"addressType": "IPv4", "endpoints": eps, "ports": port(c.Endpoints[0].Port())}
	}
	return nil
}

func status(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "status": "Failure", "message": message, "code": code})
}

// ServeTLS runs a TLS server with a certificate, for as long as the test.
func ServeTLS(t *testing.T, address string, cert tls.Certificate, h http.Handler) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// AnswersOK answers every question with "ok".
var AnswersOK = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
