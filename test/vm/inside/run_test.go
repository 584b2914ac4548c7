package inside

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// The Service that the runtime serves, and the addresses of this machine that its backends and the API server have.
const (
	web, webUDP  = "10.96.7.7:80", "10.96.7.7:53"
	nodePort     = "192.0.2.1:30080"
	hostAddr     = "192.0.2.1"
	one, another = "192.0.2.11", "192.0.2.12"
)

// TestRuntimeOnEveryRung runs the runtime beside a stand-in for the API server as a service manager
// does, kills it, starts it again, and removes all after it was killed.
func TestRuntimeOnEveryRung(t *testing.T) {
	needsMachine(t)
	addAddrs(t, hostAddr, one, another)
	authority, err := standin.NewAuthority(netip.MustParseAddr("10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	api := netip.MustParseAddrPort(hostAddr + ":6443")
	objects := standin.NewObjects()
	objects.Put("nodes", standin.Object{
		"metadata": standin.Object{"name": "node-a"},
		"status":   standin.Object{"addresses": []standin.Object{{"type": "InternalIP", "address": hostAddr}}},
	})
	putService(objects, "kubernetes", vip4, standin.Object{"name": "https", "protocol": "TCP", "port": 443})
	putEndpoints(objects, "kubernetes", hostAddr, standin.Object{"name": "https", "protocol": "TCP", "port": 6443})
	server, err := standin.StartAPIServer(standin.APIServerConfig{
		Name: "api", Addrs: []netip.AddrPort{api}, Network: machine{}, Authority: authority, Objects: objects,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	for _, addr := range []string{one, another} {
		echo(t, "tcp", addr, addr+":8080")
		echo(t, "udp", addr, addr+":5353")
	}
	kubeconfig := writeKubeconfig(t, authority)
	for _, rung := range []struct{ name, forbidden string }{{"with everything", ""}, {"as on the floor", aboveFloor()}} {
		t.Run(rung.name, func(t *testing.T) {
			before := takeTraces(t)
			firsthop(t, forbid(rung.forbidden, "init", "--persist", "off",
				"--service-ips", vip4, "--endpoints", api.String())...).exits(0)
			putWeb(objects, one)
			run := startRuntime(t, kubeconfig, rung.forbidden)
			run.serves(one)
			putWeb(objects, another)
			run.serves(another)
			firsthop(t, "status").exits(0).says("3 Service ports are served")
			firsthop(t, "nat").exits(0).says("default/web", another)
			lookUp(t, rung.forbidden)

			run.kill()
			wantServed(t, another)
			putWeb(objects, one)
			run = startRuntime(t, kubeconfig, rung.forbidden)
			run.serves(one)

			run.kill()
			firsthop(t, forbid(rung.forbidden, "uninstall", "--force")...).exits(0)
			eventuallySame(t, "uninstall", before)
			if e := exchange(t, clients.TCP, web); e.Error == "" {
				t.Errorf("after uninstall: %+v", e)
			}
			firsthop(t, "uninstall").exits(0).says("nothing of firsthop's is here")
		})
	}
}

// lookUp wants nat lookup to name the backend, and a process's network namespace only where that is known.
func lookUp(t *testing.T, forbidden string) {
	t.Helper()
	line := forbid(forbidden, "nat", "lookup", web)
	firsthop(t, line...).exits(0).says("translated to "+another+":8080", "default/web", "in the host's network namespace")
	client := "network namespace (cookie "
	if missing(t, forbidden, "so-netns-cookie") && (missing(t, forbidden, "netns-cookie") || missing(t, forbidden, "cgroup-link")) {
		client = "in a network namespace that can't be told"
	}
	firsthop(t, append(line, "--pid", strconv.Itoa(os.Getpid()))...).exits(0).says("translated to "+another+":8080", client)
}

// addAddrs gives the machine addresses until the test ends.
func addAddrs(t *testing.T, addrs ...string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a + "/32")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatalf("add %s: %v", a, err)
		}
		t.Cleanup(func() { _ = netlink.AddrDel(lo, addr) })
	}
}

func writeKubeconfig(t *testing.T, authority *standin.Authority) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.crt", string(authority.PEM()))
	return write("kubeconfig", `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
"clusters": [{"name": "c", "cluster": {"server": "https://`+vip4+`", "certificate-authority": "`+ca+`"}}],
"contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
"users": [{"name": "c", "user": {}}]}`)
}

func meta(name string) standin.Object {
	return standin.Object{"namespace": "default", "name": name, "labels": standin.Object{"kubernetes.io/service-name": name}}
}

// putService adds a Service with the address of vip, a NodePort if one of its ports has one.
func putService(objects *standin.Objects, name, vip string, ports ...standin.Object) {
	addr := netip.MustParseAddrPort(vip).Addr().String()
	kind := "ClusterIP"
	for _, p := range ports {
		if p["nodePort"] != nil {
			kind = "NodePort"
		}
	}
	objects.Put("services", standin.Object{"metadata": meta(name), "spec": standin.Object{
		"type": kind, "clusterIP": addr, "clusterIPs": []string{addr}, "ipFamilies": []string{"IPv4"}, "ports": ports,
	}})
}

func putEndpoints(objects *standin.Objects, name, addr string, ports ...standin.Object) {
	objects.Put("endpointslices", standin.Object{
		"metadata": meta(name), "addressType": "IPv4", "ports": ports,
		"endpoints": []standin.Object{{"addresses": []string{addr}, "conditions": standin.Object{"ready": true}}},
	})
}

// putWeb has the Service lead to a backend.
func putWeb(objects *standin.Objects, backend string) {
	putService(objects, "web", web,
		standin.Object{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080},
		standin.Object{"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053})
	putEndpoints(objects, "web", backend,
		standin.Object{"name": "http", "protocol": "TCP", "port": 8080},
		standin.Object{"name": "dns", "protocol": "UDP", "port": 5353})
}

// running is a `firsthop run`.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	output bytes.Buffer
	done   chan struct{}
}

// startRuntime starts one that ends with the test.
func startRuntime(t *testing.T, kubeconfig, forbidden string) *running {
	t.Helper()
	r := &running{t: t, done: make(chan struct{})}
	r.cmd = exec.Command("/bin/firsthop", forbid(forbidden, "run", "--kubeconfig", kubeconfig, "--node-name", "node-a", "--node-status=false")...)
	r.cmd.Env = []string{}
	r.cmd.Stdout, r.cmd.Stderr = &r.output, &r.output
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(r.done); _ = r.cmd.Wait() }()
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("firsthop run said:\n%s", &r.output)
		}
	})
	return r
}

// kill ends it without any warning.
func (r *running) kill() {
	_ = r.cmd.Process.Kill()
	<-r.done
}

// serves waits for the runtime to lead the Service to a backend.
func (r *running) serves(backend string) {
	r.t.Helper()
	lab.Await(r.t, "the Service leads to "+backend, func() bool {
		select {
		case <-r.done:
			r.t.Fatal("the runtime has ended")
		default:
		}
		return exchange(r.t, clients.TCP, web).Server() == backend
	})
	wantServed(r.t, backend)
}

// wantServed connects to all of the Service's addresses.
func wantServed(t *testing.T, backend string) {
	t.Helper()
	for _, tc := range []struct {
		mode clients.Mode
		addr string
	}{
		{clients.TCP, web}, {clients.TCP, nodePort}, {clients.UDPConnected, webUDP}, {clients.UDPUnconnected, webUDP},
	} {
		if e := exchange(t, tc.mode, tc.addr); e.Server() != backend {
			t.Errorf("%s to %s was answered by %+v, want %s", tc.mode, tc.addr, e, backend)
		}
	}
}
