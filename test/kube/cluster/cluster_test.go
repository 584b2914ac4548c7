package cluster_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// deadline bounds every wait of these tests.
const deadline = 2 * time.Minute

func TestCluster(t *testing.T) {
	c := cluster.New(t, cluster.Config{Servers: 2})
	near := c.AddNode(cluster.NodeConfig{Name: "near", Zone: "zone-a"})
	far := c.AddNode(cluster.NodeConfig{Name: "far", Zone: "zone-b"})

	t.Run("a watch-list by protobuf tells of Services and EndpointSlices", func(t *testing.T) { testWatch(t, c) })
	t.Run("identities have the rights that Kubernetes gives them", func(t *testing.T) { testRights(t, c) })
	t.Run("kube-proxy leads to an endpoint on another node", func(t *testing.T) { testProxy(t, c, near, far) })
	t.Run("an API server ends, vanishes and comes back while another serves", func(t *testing.T) { testServers(t, c) })
}

// web is a Service with one endpoint.
func web(name string, clusterIP string, endpoint netip.AddrPort, node string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	port := corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: clusterIP, Ports: []corev1.ServicePort{port}}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{endpoint.Addr().String()}, NodeName: &node}},
		Ports:       []discoveryv1.EndpointPort{{Name: &port.Name, Protocol: &port.Protocol, Port: new(int32(endpoint.Port()))}},
	}
	return svc, slice
}

func testWatch(t *testing.T, c *cluster.Cluster) {
	var seen exchanges
	cfg := c.RESTConfig(c.ServiceAccount("kube-system", "watcher", "system:node-proxier"), c.Servers[0])
	cfg.Wrap(seen.wrap)
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	svc, slice := web("watched", "10.96.9.1", netip.MustParseAddrPort("10.244.7.7:8080"), "near")
	c.Apply(svc)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := make(chan string, 100)
	tell := func(kind string) cache.ResourceEventHandlerFuncs {
		name := func(obj any) string { return kind + " " + obj.(metav1.Object).GetName() }
		return cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { events <- "new " + name(obj) },
			UpdateFunc: func(_, obj any) { events <- "changed " + name(obj) },
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	defer factory.Shutdown()
	defer cancel()
	for kind, informer := range map[string]cache.SharedIndexInformer{
		"Service":       factory.Core().V1().Services().Informer(),
		"EndpointSlice": factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		if _, err := informer.AddEventHandler(tell(kind)); err != nil {
			t.Fatal(err)
		}
	}
	factory.Start(ctx.Done())

	await(t, events, "new Service watched")
	c.Apply(slice)
	await(t, events, "new EndpointSlice watched-1")
	c.Patch(svc, "watched", map[string]any{"metadata": map[string]any{"labels": map[string]any{"a": "b"}}})
	await(t, events, "changed Service watched")

	for _, resource := range []string{"services", "endpointslices"} {
		seen.check(t, resource)
	}
}

// await waits for an event and lets others pass.
func await(t *testing.T, events <-chan string, want string) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case got := <-events:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("no event %q", want)
		}
	}
}

// exchanges are the requests that a client made, with the types of the answers.
type exchanges struct {
	mu   sync.Mutex
	list []string
}

func (e *exchanges) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err == nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.list = append(e.list, req.URL.RequestURI()+" "+resp.Header.Get("Content-Type"))
		}
		return resp, err
	})
}

// check wants one request for a resource: a watch that began with all that there was, in protobuf.
func (e *exchanges) check(t *testing.T, resource string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	var of []string
	for _, x := range e.list {
		if strings.Contains(x, "/"+resource+"?") {
			of = append(of, x)
		}
	}
	if len(of) != 1 {
		t.Fatalf("%s: got the requests %q, want one", resource, of)
	}
	for _, want := range []string{"sendInitialEvents=true", "watch=true", " application/vnd.kubernetes.protobuf;stream=watch"} {
		if !strings.Contains(of[0], want) {
			t.Errorf("%s: request %q is without %q", resource, of[0], want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

var _ http.RoundTripper = roundTripper(nil)

func testRights(t *testing.T, c *cluster.Cluster) {
	for _, tc := range []struct {
		name            string
		id              cluster.Identity
		group, resource string
		want            bool
	}{
		{"kube-proxy watches EndpointSlices", cluster.KubeProxy, "discovery.k8s.io", "endpointslices", true},
		{"a kubelet watches Services", cluster.Kubelet("near"), "", "services", true},
		{"a kubelet does not watch EndpointSlices", cluster.Kubelet("near"), "discovery.k8s.io", "endpointslices", false},
		{"an account bound to node-proxier watches EndpointSlices",
			c.ServiceAccount("kube-system", "bound", "system:node-proxier"), "discovery.k8s.io", "endpointslices", true},
		{"an account without a role watches nothing", c.ServiceAccount("kube-system", "unbound"), "", "services", false},
	} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Group: tc.group, Resource: tc.resource},
		}}
		got, err := c.ClientOf(tc.id, c.Servers[1]).AuthorizationV1().SelfSubjectAccessReviews().
			Create(t.Context(), review, metav1.CreateOptions{})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got.Status.Allowed != tc.want {
			t.Errorf("%s: allowed is %v, want %v", tc.name, got.Status.Allowed, tc.want)
		}
	}
}

func testProxy(t *testing.T, c *cluster.Cluster, near, far *cluster.Node) {
	client, err := near.AddPod("client", near.Pod(1)...)
	if err != nil {
		t.Fatal(err)
	}
	server, err := far.AddPod("server", far.Pod(1)...)
	if err != nil {
		t.Fatal(err)
	}
	backend := netip.AddrPortFrom(far.Pod(1)[0], 8080)
	ln, err := server.Listen("tcp4", backend.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, conn.RemoteAddr().String())
			conn.Close()
		}
	}()
	svc, slice := web("proxied", "10.96.9.2", backend, far.Name)
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	c.Apply(svc, slice)
	outside := c.AddClient(netip.MustParseAddr("203.0.113.2"))
	nodePort := netip.AddrPortFrom(near.IPs[0], 30080).String()

	ask := func(from *lab.Pod, address string, within time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		conn, err := from.DialContext(ctx, "tcp4", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(within))
		said, err := io.ReadAll(conn)
		return string(said), err
	}
	if said, err := ask(client, backend.String(), 10*time.Second); err != nil || !strings.HasPrefix(said, near.Pod(1)[0].String()+":") {
		t.Fatalf("the network of pods: got %q, %v", said, err)
	}
	for _, mode := range []string{"nftables", "iptables"} {
		proxy := near.StartKubeProxy(mode)
		near.AwaitHealthy()
		for until := time.Now().Add(deadline); ; time.Sleep(50 * time.Millisecond) {
			said, err := ask(client, "10.96.9.2:80", 10*time.Second)
			if err == nil && strings.HasPrefix(said, near.Pod(1)[0].String()+":") {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("kube-proxy by %s: got %q, %v", mode, said, err)
			}
		}
		if said, err := ask(outside, nodePort, 10*time.Second); err != nil || !strings.HasPrefix(said, near.IPs[0].String()+":") {
			t.Errorf("kube-proxy by %s, from outside: got %q, %v, want the node's address", mode, said, err)
		}
		proxy.Kill()
		cleanup, err := near.Command(t.Context(), c.ProgramDir()+"/kube-proxy", "--cleanup").CombinedOutput()
		if err != nil {
			t.Errorf("kube-proxy --cleanup: %v\n%s", err, cleanup)
		}
		if said, err := ask(client, "10.96.9.2:80", time.Second); err == nil {
			t.Errorf("after kube-proxy --cleanup: still %q", said)
		}
	}
}

func testServers(t *testing.T, c *cluster.Cluster) {
	get := func(s *cluster.Server, within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err := c.ClientOf(cluster.Admin, s).CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		return err
	}
	serves := func(what string, s *cluster.Server) {
		t.Helper()
		if err := get(s, deadline); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	silent := func(what string, s *cluster.Server) {
		t.Helper()
		if err := get(s, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v, want silence", what, err)
		}
	}
	first, second := c.Servers[0], c.Servers[1]
	second.Kill()
	if err := get(second, deadline); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a server that was killed: got %v, want a refusal", err)
	}
	serves("the other server", first)
	second.Start()
	serves("a server that was started again", second)

	first.Vanish()
	silent("a server whose address vanished", first)
	serves("while the other's address is gone", second)
	first.Appear()
	serves("a server that appeared again", first)

	second.Pause()
	silent("a server that is paused", second)
	second.Resume()
	serves("a server that was resumed", second)
	if err := second.Stop(); err != nil {
		t.Errorf("a server that was asked to end: %v", err)
	}
}
