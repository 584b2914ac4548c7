package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func ep(s string) apiserver.Endpoint {
	e, reason := apiserver.ParseEndpoint(s)
	if reason != "" {
		panic(s + " " + reason)
	}
	return e
}

// listen runs serve for each connection.
func listen(t *testing.T, address string, serve func(net.Conn)) apiserver.Endpoint {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return apiserver.Endpoint{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
}

// tlsListen answers every request with text over TLS.
func tlsListen(t *testing.T, ca *apitest.CA, address, answer string, names ...string) apiserver.Endpoint {
	cert := ca.Server(t, names...)
	return listen(t, address, func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if _, err := bufio.NewReader(tc).ReadString('\n'); err == nil {
			io.WriteString(tc, answer)
		}
	})
}

func TestProbe(t *testing.T) {
	ca, foreign := apitest.NewCA(t), apitest.NewCA(t)
	serve := func(c *apitest.Cluster, address string, extra ...string) apiserver.Endpoint {
		c.CA = ca
		at, _ := c.Serve(t, address, extra...)
		return apiserver.Endpoint{Addr: at}
	}
	closed := func(address string) apiserver.Endpoint {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return apiserver.Endpoint{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
	}
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	for name, tc := range map[string]struct {
		at       apiserver.Endpoint
		strength Strength
		noCA     bool
		state    apiserver.State
		kind     apiserver.Kind
		status   int
		verified bool
		detail   string
	}{
		"TCP: a listener on IPv4":              {listen(t, "10.99.0.1:0", func(net.Conn) {}), TCP, false, apiserver.Live, "", 0, false, ""},
		"TCP: a listener on IPv6":              {listen(t, "[fd00:99::1]:0", func(net.Conn) {}), TCP, false, apiserver.Live, "", 0, false, ""},
		"TCP: a listener on loopback":          {listen(t, "[::1]:0", func(net.Conn) {}), TCP, false, apiserver.Live, "", 0, false, ""},
		"TCP: an API server that is not ready": {serve(&apitest.Cluster{Ready: 500}, "127.0.0.1:0"), TCP, false, apiserver.Live, "", 0, false, ""},
		"nobody listens, IPv4":                 {closed("10.99.0.1:0"), TCP, false, apiserver.Dead, apiserver.KindRefused, 0, false, "connection refused"},
		"nobody listens, IPv6":                 {closed("[fd00:99::1]:0"), Ready, false, apiserver.Dead, apiserver.KindRefused, 0, false, "connection refused"},
		"silence, IPv4":                        {ep(apitest.Silent4 + ":6443"), TCP, false, apiserver.Dead, apiserver.KindTimeout, 0, false, "no answer in time"},
		"silence, IPv6":                        {ep("[" + apitest.Silent6 + "]:6443"), Ready, false, apiserver.Dead, apiserver.KindTimeout, 0, false, "no answer in time"},
		"no route":                             {ep("192.0.2.1:6443"), TCP, false, apiserver.Dead, apiserver.KindUnreachable, 0, false, "network is unreachable"},
		"an unreachable route":                 {ep(apitest.Unreachable4 + ":6443"), TCP, false, apiserver.Dead, apiserver.KindUnreachable, 0, false, "no route to host"},
		"a name without an address":            {ep("api.example:6443"), TCP, false, apiserver.Dead, apiserver.KindUnresolved, 0, false, "api.example has no address"},
		"ready":                                {serve(&apitest.Cluster{}, "10.99.0.2:0"), Ready, false, apiserver.Live, "", 200, true, ""},
		"ready on IPv6":                        {serve(&apitest.Cluster{}, "[fd00:99::2]:0"), Ready, false, apiserver.Live, "", 200, true, ""},
		"ready, CA not known":                  {serve(&apitest.Cluster{}, "10.99.0.2:0"), Ready, true, apiserver.Live, "", 200, false, ""},
		"401 is live":                          {serve(&apitest.Cluster{NoAnonymous: true}, "10.99.0.2:0"), Ready, false, apiserver.Live, "", 401, true, ""},
		"403 is live":                          {serve(&apitest.Cluster{Ready: 403}, "10.99.0.2:0"), Ready, false, apiserver.Live, "", 403, true, ""},
		"500 answers, but is not ready":        {serve(&apitest.Cluster{Ready: 500}, "10.99.0.2:0"), Ready, false, apiserver.NotReady, apiserver.KindHTTP, 500, true, "500 Internal Server Error"},
		"503 answers, but is not ready":        {serve(&apitest.Cluster{Ready: 503}, "10.99.0.2:0"), Ready, false, apiserver.NotReady, apiserver.KindHTTP, 503, true, "503"},
		"another cluster's certificate":        {tlsListen(t, foreign, "10.99.0.3:0", "HTTP/1.1 200 OK\r\n\r\n", apitest.Names...), Ready, false, apiserver.Dead, apiserver.KindTLS, 0, false, "not an API server of this cluster"},
		"our CA, but not an API server":        {tlsListen(t, ca, "10.99.0.3:0", "HTTP/1.1 200 OK\r\n\r\n", "etcd.local"), Ready, false, apiserver.Dead, apiserver.KindTLS, 0, false, "not an API server of this cluster"},
		"not TLS": {listen(t, "10.99.0.3:0", func(c net.Conn) {
			bufio.NewReader(c).ReadByte()
			io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n")
		}), Ready, false, apiserver.Dead, apiserver.KindTLS, 0, false, "not an API server of this cluster"},
		"accepted, then closed, as a balancer without servers": {listen(t, "10.99.0.3:0", func(net.Conn) {}), Ready, false, apiserver.NotReady, apiserver.KindClosed, 0, false, "closed"},
		"accepted, then silence":                               {listen(t, "10.99.0.3:0", func(net.Conn) { <-hang }), Ready, false, apiserver.NotReady, apiserver.KindTimeout, 0, false, "no answer in time"},
		"TLS, then not HTTP":                                   {tlsListen(t, ca, "10.99.0.3:0", "220 mail ESMTP\r\n", apitest.Names...), Ready, false, apiserver.Dead, apiserver.KindHTTP, 0, true, ""},
		"a redirect is not followed":                           {tlsListen(t, ca, "10.99.0.3:0", "HTTP/1.1 302 Found\r\nLocation: https://10.99.0.2/\r\n\r\n", apitest.Names...), Ready, false, apiserver.NotReady, apiserver.KindHTTP, 302, true, "302"},
		"headers without end are bounded":                      {tlsListen(t, ca, "10.99.0.3:0", "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1<<20), apitest.Names...), Ready, false, apiserver.NotReady, apiserver.KindClosed, 0, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Strength: tc.strength, Timeout: 400 * time.Millisecond, Trust: &apiserver.Trust{CA: ca.PEM}}
			if tc.noCA {
				cfg.Trust = nil
			}
			start := time.Now()
			r := Endpoints(context.Background(), []apiserver.Endpoint{tc.at}, cfg)[0]
			if r.Endpoint != tc.at || r.State != tc.state || r.Kind != tc.kind || r.Status != tc.status || r.Verified != tc.verified {
				t.Errorf("got %+v", r)
			}
			if (r.Err == nil) != (tc.state == apiserver.Live) || r.Err != nil && !strings.Contains(r.Err.Error(), tc.detail) {
				t.Errorf("error %v, want %q", r.Err, tc.detail)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestProbeOrderIsLiveThenNotReadyThenDeadAndStable(t *testing.T) {
	ca := apitest.NewCA(t)
	live := &apitest.Cluster{CA: ca}
	sick := &apitest.Cluster{CA: ca, Ready: 500}
	var in []apiserver.Endpoint
	add := func(c *apitest.Cluster, address string) apiserver.Endpoint {
		at, _ := c.Serve(t, address)
		return apiserver.Endpoint{Addr: at}
	}
	dead1, dead2 := ep("192.0.2.1:1"), ep("192.0.2.1:2")
	s1, l1, s2, l2 := add(sick, "10.99.0.1:0"), add(live, "10.99.0.1:0"), add(sick, "10.99.0.1:0"), add(live, "[fd00:99::1]:0")
	in = []apiserver.Endpoint{dead1, s1, l1, dead2, s2, l2}
	want := []apiserver.Endpoint{l1, l2, s1, s2, dead1, dead2}
	for i, r := range Endpoints(context.Background(), in, Config{Strength: Ready, Trust: &apiserver.Trust{CA: ca.PEM}}) {
		if r.Endpoint != want[i] {
			t.Errorf("place %d has %s, want %s", i, r.Endpoint, want[i])
		}
	}
}

func TestProbeManySilentEndpointsTakesOneTimeout(t *testing.T) {
	var in []apiserver.Endpoint
	for p := range maxProbes {
		in = append(in, apiserver.Endpoint{Addr: netip.AddrPortFrom(netip.MustParseAddr(apitest.Silent4), uint16(p+1))})
	}
	start := time.Now()
	for _, r := range Endpoints(context.Background(), in, Config{Timeout: 200 * time.Millisecond}) {
		if r.State != apiserver.Dead || r.Kind != apiserver.KindTimeout {
			t.Fatalf("got %+v", r)
		}
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v: not in parallel", d)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	stuck := listen(t, "10.99.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	r := Endpoints(ctx, []apiserver.Endpoint{stuck, ep(apitest.Silent4 + ":1")}, Config{Strength: Ready, Timeout: time.Minute})
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	for _, p := range r {
		if p.Kind != apiserver.KindTimeout {
			t.Errorf("got %+v", p)
		}
	}
}

func TestProbeUsesTheCallersDial(t *testing.T) {
	at := listen(t, "10.99.0.1:0", func(net.Conn) {})
	var n atomic.Int32
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		n.Add(1)
		if address != "203.0.113.1:6443" {
			return nil, fmt.Errorf("asked for %s", address)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, at.Addr.String())
	}
	if r := Endpoints(context.Background(), []apiserver.Endpoint{ep("203.0.113.1:6443")}, Config{Dial: dial})[0]; r.State != apiserver.Live || n.Load() != 1 {
		t.Errorf("got %+v after %d calls", r, n.Load())
	}
}

// apitest.Main sets the variables for every test of this package.
func TestProxyVariablesAreSet(t *testing.T) {
	u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: "10.99.0.1:6443"}})
	if err != nil || u == nil {
		t.Errorf("proxy is %v, %v: the other tests do not show that proxies are ignored", u, err)
	}
}

func TestTheTestsHaveTheirOwnNetwork(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	if err == nil && own == parent {
		t.Error("the tests run in the network of the machine")
	}
}

func BenchmarkProbeTCP(b *testing.B) {
	l, err := net.Listen("tcp", "10.99.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	in := []apiserver.Endpoint{{Addr: l.Addr().(*net.TCPAddr).AddrPort()}}
	for b.Loop() {
		if Endpoints(context.Background(), in, Config{})[0].State != apiserver.Live {
			b.Fatal("dead")
		}
	}
}
