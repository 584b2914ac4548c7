package discover

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/test/apitest"
)

const node, nodes = "system:node:n1", "system:nodes"

// names is a name server that looks up in a table.
type names map[string][]string

func (n names) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range n[host] {
		if a := netip.MustParseAddr(s); (network == "ip4") == a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

// world is a node, its cluster and a name server.
type world struct {
	*apitest.Cluster
	cfg   Config
	names names
	stops map[string]func()
}

// newWorld has a cluster whose API servers are at the addresses given (they
// listen) and whose Service is 10.96.0.1, and a node that knows nothing.
func newWorld(t *testing.T, servers ...string) *world {
	t.Helper()
	w := &world{names: names{}, stops: map[string]func(){}}
	w.Cluster = &apitest.Cluster{CA: apitest.NewCA(t), Services: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443")}}
	for _, s := range servers {
		at, stop := w.Serve(t, s)
		w.Endpoints = append(w.Endpoints, at)
		w.stops[s] = stop
	}
	w.cfg = Config{Root: t.TempDir(), StateDir: t.TempDir(), Resolver: w.names,
		Probe: probe.Config{Strength: probe.Ready, Timeout: 300 * time.Millisecond}}
	return w
}

func (w *world) file(t *testing.T, path, content string) { apitest.Write(t, w.cfg.Root, path, content) }

// kubelet gives the node the kubelet's credentials for a server.
func (w *world) kubelet(t *testing.T, server string) {
	w.file(t, "/etc/kubernetes/kubelet.conf", w.CA.Kubeconfig(t, "https://"+server, node, nodes))
}

func (w *world) manifest(t *testing.T, advertise, ranges string) {
	w.file(t, "/etc/kubernetes/manifests/kube-apiserver.yaml", fmt.Sprintf(
		"spec: {containers: [{name: kube-apiserver, command: [kube-apiserver, --advertise-address=%s, --secure-port=6443, '--service-cluster-ip-range=%s']}]}\n", advertise, ranges))
}

func (w *world) explicit(t *testing.T, services, endpoints string) {
	t.Helper()
	var err error
	if w.cfg.Explicit, err = ParseExplicit([]Given{{"--services", services}}, []Given{{"--endpoints", ""}, {apiserver.VarEndpoints, endpoints}}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) saved(t *testing.T, services, endpoints string) {
	t.Helper()
	e, err := ParseExplicit([]Given{{"s", services}}, []Given{{"e", endpoints}})
	if err != nil {
		t.Fatal(err)
	}
	k := &apiserver.Known{Services: e.Services, Source: "api"}
	for _, e := range e.Endpoints {
		k.Endpoints = append(k.Endpoints, apiserver.KnownEndpoint{Endpoint: e})
	}
	if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: w.cfg.StateDir}, k); err != nil {
		t.Fatal(err)
	}
}

func (w *world) run(t *testing.T) (*Result, error) {
	t.Helper()
	start := time.Now()
	res, err := Run(context.Background(), w.cfg)
	if d := time.Since(start); d > Budget+2*time.Second {
		t.Errorf("took %v", d)
	}
	if res == nil {
		t.Fatal("no result")
	}
	return res, err
}

// check compares what came out with what is wanted, and prints all if not.
func (w *world) check(t *testing.T, services, usable string) *Result {
	t.Helper()
	res, err := w.run(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(apitest.Strings(res.ServiceAddrs()), " "); got != services {
		t.Errorf("services %q, want %q", got, services)
	}
	if got := strings.Join(apitest.Strings(res.Usable()), " "); got != usable {
		t.Errorf("usable %q, want %q", got, usable)
	}
	if t.Failed() {
		b, _ := json.MarshalIndent(res, "", " ")
		t.Logf("%s", b)
	}
	return res
}

func (r *Result) noted(part string) bool {
	return slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, part) })
}
