// Package outlive runs clients of many kinds against a Service while its endpoint is replaced, and while the runtime
// is restarted, or killed: what an application sees of it.
package outlive

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// firsthop and client are the program as users have it, and that of test/clients.
var firsthop, client string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fh-outlive-")
	if err != nil {
		panic(err)
	}
	firsthop, client = filepath.Join(dir, "firsthop"), filepath.Join(dir, "client")
	for path, pkg := range map[string]string{firsthop: "cmd/firsthop", client: "test/clients/client"} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/firsthop/firsthop/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build %s: %v\n%s", pkg, err, out))
		}
	}
	code := lab.RunMain(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// The cluster: the API service, and a Service whose ports lead to what a backend has.
const (
	apiIP     = "10.96.0.1"
	serviceIP = "10.96.1.1"
	apiServer = "192.0.2.11:6443"
	nodeName  = "node-a"

	echoPort, silentPort, httpPort, dnsPort = 7, 9, 80, 53 // of the Service; at the backends 7000 is added
)

// port is that of the Service with a number.
func port(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(serviceIP), uint16(n))
}

// node is a machine with firsthop, and with all backends.
type node struct {
	*testing.T
	*lab.Lab
	objects *standin.Objects
	backend map[string]*backend
	program string   // firsthop
	flags   []string // of the runtime, besides those that say where its API is
	runtime *lab.Cmd
	log     *os.File
}

// backend answers on every port of the Service, in every protocol. It goes on when it is no endpoint any more: so
// a client that still talks to it is seen.
type backend struct {
	ip    netip.Addr
	heard atomic.Int64 // datagrams at silentPort
}

// newNode makes a node that init has made ready, with a runtime.
func newNode(t *testing.T) *node { return newNodeOf(t, firsthop, nil) }

// newNodeOf is newNode with a firsthop of any version, and with what is done before init.
func newNodeOf(t *testing.T, program string, before func(*node)) *node {
	t.Helper()
	n := &node{T: t, Lab: lab.New(t), program: program, objects: standin.NewObjects(), backend: map[string]*backend{}}
	authority, err := standin.NewAuthority(netip.MustParseAddr(apiIP))
	n.must(err)
	n.must(os.WriteFile(n.Dir+"/ca.crt", authority.PEM(), 0o600))
	n.must(os.WriteFile(n.Dir+"/kubeconfig", fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://%s:443", certificate-authority: %s/ca.crt}}]
users: [{name: c, user: {token: x}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
`, apiIP, n.Dir), 0o600))
	api := netip.MustParseAddrPort(apiServer)
	n.must(n.AddAddr(netip.PrefixFrom(api.Addr(), 32).String()))
	server, err := standin.StartAPIServer(standin.APIServerConfig{Name: "a", Addrs: []netip.AddrPort{api}, Network: n.Lab, Authority: authority, Objects: n.objects})
	n.must(err)
	t.Cleanup(server.Close)
	for i, name := range []string{"old", "new"} {
		n.startBackend(name, netip.AddrFrom4([4]byte{192, 0, 2, byte(101 + i)}))
	}
	n.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	n.put("services", service("kubernetes", apiIP, corev1.ServicePort{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443}))
	n.put("endpointslices", slice("kubernetes", []discoveryv1.EndpointPort{slicePort("https", corev1.ProtocolTCP, 6443)}, api.Addr().String()))
	var ports []corev1.ServicePort
	for _, p := range slicePorts() {
		ports = append(ports, corev1.ServicePort{Name: *p.Name, Protocol: *p.Protocol, Port: *p.Port - 7000})
	}
	n.put("services", service("all", serviceIP, ports...))
	n.endpoints("old")
	if before != nil {
		before(n)
	}
	n.init()
	n.log, err = os.Create(n.Dir + "/run.log")
	n.must(err)
	t.Cleanup(func() { n.log.Close() })
	n.start()
	t.Cleanup(func() { n.end(unix.SIGTERM) })
	return n
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) command(args ...string) *lab.Cmd {
	cmd := n.Command(n.Context(), n.program, args...)
	cmd.Env = append(os.Environ(), "FIRSTHOP_BPFFS="+n.BPFFS, "FIRSTHOP_CGROUP="+n.Cgroup, "FIRSTHOP_STATE_DIR="+n.StateDir, "FIRSTHOP_RUN_DIR="+n.RunDir)
	return cmd
}

// init makes the node ready.
func (n *node) init() {
	n.Helper()
	if out, err := n.command("init", "--service-ips", apiIP+":443", "--endpoints", apiServer, "--persist", "off").CombinedOutput(); err != nil {
		n.Fatalf("init: %v\n%s", err, out)
	}
}

// start starts the runtime, and waits until the table has what the API says.
func (n *node) start() {
	n.Helper()
	args := []string{"run", "--kubeconfig", n.Dir + "/kubeconfig", "--node-name", nodeName, "--node-status=false", "--endpoints", apiServer, "--service-ips", apiIP + ":443"}
	n.runtime = n.command(append(args, n.flags...)...)
	n.runtime.Stderr = n.log
	n.must(n.runtime.Start())
}

// end ends the runtime by a signal.
func (n *node) end(signal unix.Signal) {
	n.Helper()
	_ = n.runtime.Process.Signal(signal) // it may have ended
	_ = n.runtime.Wait()                 // one that is killed fails
}

// said is what the runtime's log says.
func (n *node) said() string {
	data, _ := os.ReadFile(n.log.Name())
	return string(data)
}

func (n *node) put(resource string, object any) {
	data, err := json.Marshal(object)
	n.must(err)
	var o standin.Object
	n.must(json.Unmarshal(data, &o))
	n.objects.Put(resource, o)
}

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: ports,
		},
	}
}

func slicePort(name string, proto corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port}
}

// slicePorts are what a backend has.
func slicePorts() (out []discoveryv1.EndpointPort) {
	for name, p := range map[string]int32{"echo": echoPort, "silent": silentPort, "http": httpPort, "dns": dnsPort} {
		for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			out = append(out, slicePort(name+"-"+strings.ToLower(string(proto)), proto, 7000+p))
		}
	}
	return out
}

func slice(service string, ports []discoveryv1.EndpointPort, ips ...string) *discoveryv1.EndpointSlice {
	ready := true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

// endpoints makes backends the endpoints of the Service.
func (n *node) endpoints(names ...string) {
	var ips []string
	for _, name := range names {
		ips = append(ips, n.backend[name].ip.String())
	}
	n.put("endpointslices", slice("all", slicePorts(), ips...))
}

func (n *node) startBackend(name string, ip netip.Addr) {
	n.Helper()
	b := &backend{ip: ip}
	n.backend[name] = b
	n.must(n.AddAddr(ip.String() + "/32"))
	at := func(port int) netip.AddrPort { return netip.AddrPortFrom(ip, uint16(7000+port)) }
	for _, start := range []func(standin.Network, string, netip.AddrPort) (*standin.Echo, error){standin.StartTCPEcho, standin.StartUDPEcho} {
		e, err := start(n.Lab, name, at(echoPort))
		n.must(err)
		n.Cleanup(e.Close)
	}
	silent, err := n.ListenPacket("udp", at(silentPort).String())
	n.must(err)
	n.Cleanup(func() { silent.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := silent.ReadFrom(buf); err != nil {
				return
			}
			b.heard.Add(1)
		}
	}()
	web, err := n.Listen("tcp", at(httpPort).String())
	n.must(err)
	n.Cleanup(func() { web.Close() })
	reply, err := json.Marshal(standin.Reply{Server: name})
	n.must(err)
	go func() {
		_ = http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]string{"reply": string(reply)})
		}))
	}()
	n.startDNS(name, at(dnsPort))
}

func (n *node) startDNS(name string, at netip.AddrPort) {
	n.Helper()
	pc, err := n.ListenPacket("udp", at.String())
	n.must(err)
	ln, err := n.Listen("tcp", at.String())
	n.must(err)
	n.Cleanup(func() { pc.Close(); ln.Close() })
	d := dns{server: name, ip: at.Addr()}
	go d.datagrams(pc)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go d.stream(conn)
		}
	}()
}

// table is what `firsthop nat` says.
func (n *node) table() string {
	out, _ := n.command("nat").Output() // there may be none yet
	return string(out)
}

// patience is for a client that never gets there.
const patience = time.Minute

// within reports whether something comes to hold.
func within(holds func() bool) bool {
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
