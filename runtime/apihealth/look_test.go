package apihealth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/test/apitest"
	"github.com/firsthop/firsthop/test/standin"
)

// zone is a name server: it looks names up, and can be down.
type zone struct {
	mu    sync.Mutex
	names map[string][]string
	down  bool
	asked int
}

func (z *zone) set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.names == nil {
		z.names = map[string][]string{}
	}
	z.names[name] = addrs
}

func (z *zone) setDown(down bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.down = down
}

func (z *zone) questions() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	if z.down {
		return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
	}
	var out []netip.Addr
	for _, s := range z.names[host] {
		if a := netip.MustParseAddr(s); (network == "ip4") == a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

func TestLookFollowsANameWhoseServerHasMoved(t *testing.T) {
	r := newRig(t)
	z := &zone{}
	z.set("api.example", "192.0.2.11")
	r.cfg.Resolver = z
	r.cfg.Explicit = endpoints(t, "api.example:6443")
	s := r.serve(a1)
	r.run()
	r.await(a1)
	r.serve(a2)
	z.set("api.example", "192.0.2.12")
	s.Close()
	r.await(a2)
	if e := r.m.Status().endpoint(a2); e.Endpoint.Host != "api.example" {
		t.Errorf("status has %+v", e)
	}
	// A name server that is down takes nothing with it.
	z.setDown(true)
	r.lookNow()
	r.until("the question without an answer", func(s Status) bool { return len(s.Names) == 1 && s.Names[0].Err != "" })
	if s := r.m.Status(); !s.Live || r.set() != a2 || s.Names[0].Addresses != 1 {
		t.Errorf("status is %+v", s)
	}
}

// TestLookFollowsServicesEndpoint: the ConfigMap of that name changes while the runtime runs, and the API server with it.
func TestLookFollowsServicesEndpoint(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	r.cfg.Pod = sources.PodEnvironment{EndpointDir: dir}
	apitest.Write(t, dir, "KUBERNETES_SERVICE_PORT", "6443")
	apitest.Write(t, dir, "KUBERNETES_SERVICE_HOST", "192.0.2.11")
	s := r.serve(a1)
	r.run()
	r.await(a1)
	r.serve(a2)
	apitest.Write(t, dir, "KUBERNETES_SERVICE_HOST", "192.0.2.12")
	s.Close()
	r.await(a2)
	for _, a := range []string{a1, a2} {
		if logged := "addresses=[" + a + "] from=\"ConfigMap kubernetes-services-endpoint"; strings.Count(r.logs.String(), logged) != 1 {
			t.Errorf("the log does not have %q once", logged)
		}
	}
}

// While all is well a name is looked up from time to time, and its answer followed.
func TestLookFollowsANameWhileItsServerLives(t *testing.T) {
	r := newRig(t)
	r.cfg.Explicit = endpoints(t, "api.example:6443")
	r.file("etc/hosts", "192.0.2.11 api.example\n")
	r.serve(a1)
	r.serve(a2)
	r.run()
	r.await(a1)
	r.until("the first look is over", func(s Status) bool { return len(s.Names) == 1 })
	r.file("etc/hosts", "192.0.2.11 api.example\n192.0.2.12 api.example\n")
	r.lookNow()
	r.await(a1, a2)
	r.until("the next look is in half a minute", func(Status) bool {
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		wait := time.Until(r.m.lookDue)
		return wait > resolveInterval/2 && wait <= resolveInterval
	})
}

func TestLookUsesSavedAddressesWithoutANameServer(t *testing.T) {
	r := newRig(t)
	z := &zone{down: true}
	r.cfg.Resolver = z
	r.cfg.Explicit = endpoints(t, "api.example:6443")
	save(t, r, apiserver.Endpoint{Host: "api.example", Addr: netip.MustParseAddrPort(a1)}, endpoints(t, a2)[0])
	r.serve(a1)
	r.serve(a2)
	r.run()
	r.await(a1)
	r.until("the name server was asked", func(Status) bool { return z.questions() > 0 })
}

func TestLookReadsAChangedKubeletConf(t *testing.T) {
	r := newRig(t)
	r.cfg.CA = nil // it is in the file, and changes with it
	s := r.serve(a1)
	r.kubeletConf(a1, r.ca)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	s.Close()
	r.until("all dead", func(s Status) bool { return !s.Live && s.Counters.Looks > 1 })
	other, err := standin.NewAuthority(netip.MustParseAddr("10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	r.serveAs(a2, other)
	r.kubeletConf(a2, other)
	if d := r.await(a2); d > maxLookInterval+promised {
		t.Errorf("after %v", d)
	}
	// The API names it now, and is right.
	r.m.SetEndpoints(addrs(a2))
	r.until("first tier", func(s Status) bool { return s.endpoint(a2).First && len(s.Endpoints) == 1 })
	if r.changes() != 2 {
		t.Errorf("%d changes", r.changes())
	}
}

func TestLookReadsTheRuntimesOwnKubeconfig(t *testing.T) {
	r := newRig(t)
	r.kubeletConf(a1, r.ca)
	r.cfg.Kubeconfig = "/srv/config"
	r.serve(a1)
	r.run()
	r.await(a1)
	if src := r.m.Status().endpoint(a1).Source; src != apiserver.SourceKubeadm {
		t.Errorf("found by %s", src)
	}
	r.end()
	r.cfg.Root = t.TempDir()
	r.kubeletConf(a1, r.ca)
	r.file("srv/config", string(must(readTestFile(r, "etc/kubernetes/kubelet.conf"))))
	r.run()
	r.until("found", func(s Status) bool { return s.endpoint(a1).Source == apiserver.SourceKubeconfig })
}

func TestLookUsesSavedAddressesAfterARestart(t *testing.T) {
	r := newRig(t)
	save(t, r, endpoints(t, a1+","+a2+","+a3)...)
	r.serve(a3)
	r.run()
	r.await(a3)
	e := r.m.Status().endpoint(a3)
	if e.Source != apiserver.SourceCache || e.First {
		t.Errorf("status says %+v", e)
	}
}

func TestLookRefusesTheServiceIP(t *testing.T) {
	r := newRig(t)
	r.kubeletConf(vip, r.ca)
	r.cfg.Adopted = addrs(a1)
	r.serve(a1)
	m := r.run()
	m.SetEndpoints(addrs(vip, a1, "127.0.0.1:6443"))
	r.until("live", func(s Status) bool { return s.endpoint(a1).Source == apiserver.SourceAPI })
	m.SetEndpoints(addrs(vip))
	r.until("nothing to ask but the one that was live", func(s Status) bool { return len(s.Endpoints) == 1 && !s.Endpoints[0].First })
	if r.changes() != 0 {
		t.Errorf("was told %s", r.set())
	}
}

// k3s' agent has a proxy on loopback, which can be no endpoint but knows the way to the API.
func TestLookAsksANodeLocalProxyWhenNothingElseIsKnown(t *testing.T) {
	r := newRig(t)
	ca := apitest.NewCA(t)
	cluster := &apitest.Cluster{CA: ca, Services: addrs(vip), Endpoints: addrs(a1)}
	for _, at := range []string{"127.0.0.1:6444", a1} {
		ln, err := r.l.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca.PEM)
		srv := &http.Server{Handler: cluster, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{ca.Server(t, apitest.Names...)}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.ServeTLS(ln, "", "") }()
		t.Cleanup(func() { srv.Close(); <-done })
	}
	r.cfg.CA = nil
	r.file("var/lib/rancher/k3s/agent/kubelet.kubeconfig", ca.Kubeconfig(t, "https://127.0.0.1:6444", "system:node:n", "system:nodes"))
	r.run()
	r.await(a1)
	if e := r.m.Status().endpoint(a1); e.Source != apiserver.SourceAPI || e.First {
		t.Errorf("status says %+v", e)
	}
}

// Nothing of a host that is odd may stop the rest.
func TestLookSurvivesDamagedFiles(t *testing.T) {
	r := newRig(t)
	r.file("etc/kubernetes/kubelet.conf", "{")
	if err := os.MkdirAll(r.cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(apiserver.CachePath(r.cfg.StateDir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serve(a1)
	r.run().SetEndpoints(addrs(a1))
	r.await(a1)
	r.until("saved", func(s Status) bool { return s.Counters.Saves == 1 })
	if got := saved(t, r); len(got) != 1 || got[0] != a1 {
		t.Errorf("saved are %q", got)
	}
}

func TestLookFindsAServerThatMovedWhileTheRuntimeWasDown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setUp func(r *rig)
	}{
		{"by its name in kubelet.conf", func(r *rig) {
			r.kubeletConf("api.example:6443", r.ca)
			save(r.t, r, endpoints(r.t, a1)...)
			r.cfg.Adopted = addrs(a1)
		}},
		{"by its name in the saved addresses", func(r *rig) {
			save(r.t, r, apiserver.Endpoint{Host: "api.example", Addr: netip.MustParseAddrPort(a1)})
			r.cfg.Adopted = addrs(a1)
		}},
		{"by a name given by hand", func(r *rig) {
			r.cfg.Explicit = endpoints(r.t, "api.example:6443")
			save(r.t, r, apiserver.Endpoint{Host: "api.example", Addr: netip.MustParseAddrPort(a1)})
			r.cfg.Adopted = addrs(a1)
		}},
		{"by a changed kubelet.conf", func(r *rig) {
			r.kubeletConf(a2, r.ca)
			r.cfg.Adopted = addrs(a1)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			z := &zone{}
			z.set("api.example", "192.0.2.12")
			r.cfg.Resolver = z
			tc.setUp(r)
			r.silence(a1)
			r.serve(a2)
			r.run()
			if d := r.await(a2); d > promised {
				t.Errorf("after %v", d)
			}
		})
	}
}

// One server after the other gets a certificate of the new CA.
func TestLookReadsANewCAWhileTheOldOneServes(t *testing.T) {
	r := newRig(t)
	next, err := standin.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	account := func(ca ...*standin.Authority) {
		var pem []byte
		for _, a := range ca {
			pem = append(pem, a.PEM()...)
		}
		for name, content := range map[string][]byte{"token": []byte("t"), "ca.crt": pem} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	account(r.ca)
	r.cfg.CA = nil
	r.cfg.Pod.ServiceAccountDir = dir
	r.serve(a1)
	r.serveAs(a2, next)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1)
	r.until("an unknown server", func(s Status) bool { return s.endpoint(a2).Kind == apiserver.KindTLS })
	account(r.ca, next)
	r.lookNow()
	r.await(a1, a2)
	if s := r.m.Status().endpoint(a1); s.Failures != 0 {
		t.Errorf("the new CA made the old server fail: %+v", s)
	}
}
