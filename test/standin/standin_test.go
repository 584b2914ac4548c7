package standin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func addrs(t testing.TB, ss ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range ss {
		out = append(out, must(netip.ParseAddrPort(s))(t))
	}
	return out
}

func startAPIServer(t testing.TB, l *lab.Lab, ca *standin.Authority, name string, at ...string) *standin.APIServer {
	t.Helper()
	s := must(standin.StartAPIServer(standin.APIServerConfig{
		Name: name, Addrs: addrs(t, at...), Network: l, Authority: ca,
	}))(t)
	t.Cleanup(s.Close)
	return s
}

// client connects to one address whatever the URL says, inside the lab.
func client(t testing.TB, l *lab.Lab, ca *standin.Authority, to string, http2 bool) *http.Client {
	transport := &http.Transport{
		TLSClientConfig:   ca.ClientConfig(),
		ForceAttemptHTTP2: http2,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return l.DialContext(ctx, network, to)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 5 * time.Second}
}

func get(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp := must(c.Get(url))(t)
	defer resp.Body.Close()
	return resp, string(must(io.ReadAll(resp.Body))(t))
}

func TestAPIServerAnswersForTheServiceIP(t *testing.T) {
	l := lab.New(t)
	ca := must(standin.NewAuthority(netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")))(t)
	startAPIServer(t, l, ca, "one", "127.0.0.1:6443", "[::1]:6443")

	for _, tc := range []struct {
		to, url   string
		http2     bool
		wantProto int
	}{
		{"127.0.0.1:6443", "https://10.96.0.1/version", false, 1},
		{"127.0.0.1:6443", "https://10.96.0.1/version", true, 2},
		{"[::1]:6443", "https://[fd00:96::1]/version", true, 2},
		{"[::1]:6443", "https://kubernetes.default.svc/version", true, 2},
	} {
		t.Run(fmt.Sprintf("%s at %s over HTTP %d", tc.url, tc.to, tc.wantProto), func(t *testing.T) {
			resp, body := get(t, client(t, l, ca, tc.to, tc.http2), tc.url)
			if resp.StatusCode != 200 || resp.ProtoMajor != tc.wantProto || resp.Header.Get(standin.ServedBy) != "one" {
				t.Errorf("got %s over HTTP/%d by %q", resp.Status, resp.ProtoMajor, resp.Header.Get(standin.ServedBy))
			}
			var version struct{ Major, GitVersion string }
			if err := json.Unmarshal([]byte(body), &version); err != nil || version.Major != "1" || version.GitVersion != "v1.36.3+one" {
				t.Errorf("version is %+v (%v) in %s", version, err, body)
			}
		})
	}
	if _, err := client(t, l, ca, "127.0.0.1:6443", false).Get("https://10.96.0.2/version"); err == nil {
		t.Error("the certificate is valid for an address that is not the Service IP")
	}
}

func TestAPIServerStates(t *testing.T) {
	l := lab.New(t)
	ca := must(standin.NewAuthority())(t)
	s := startAPIServer(t, l, ca, "one", "127.0.0.1:0")
	url := "https://" + s.Addrs[0].String()
	c := client(t, l, ca, s.Addrs[0].String(), true)

	for _, tc := range []struct {
		name  string
		setUp func()
		path  string
		want  int
	}{
		{"at the start it is ready", func() {}, "/readyz", 200},
		{"it lives", func() {}, "/livez", 200},
		{"an unknown path is not found", func() {}, "/apis", 404},
		{"set so, it is not ready", func() { s.SetReady(false) }, "/readyz", 500},
		{"not ready, it lives", func() {}, "/livez", 200},
		{"ready again", func() { s.SetReady(true) }, "/readyz", 200},
		{"without anonymous access, even /readyz is 401", func() { s.SetAnonymous(false) }, "/readyz", 401},
		{"without anonymous access, /version is 401", func() {}, "/version", 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.setUp()
			if resp, body := get(t, c, url+tc.path); resp.StatusCode != tc.want {
				t.Errorf("%s: %s, want %d\n%s", tc.path, resp.Status, tc.want, body)
			}
		})
	}
	if s.Served() != 8 || s.Accepted() != 8 {
		t.Errorf("served %d requests on %d connections, want 8 on 8", s.Served(), s.Accepted())
	}
}

func TestAPIServerPortIsFreeAfterClose(t *testing.T) {
	l := lab.New(t)
	ca := must(standin.NewAuthority())(t)
	for range 3 {
		s := startAPIServer(t, l, ca, "one", "127.0.0.1:6443")
		get(t, client(t, l, ca, "127.0.0.1:6443", true), "https://127.0.0.1/livez")
		s.Close()
		if conn, err := l.DialContext(t.Context(), "tcp", "127.0.0.1:6443"); err == nil {
			conn.Close()
			t.Fatal("a closed server accepts")
		}
	}
}

func TestAPIServerListensEverywhereOrNowhere(t *testing.T) {
	l := lab.New(t)
	ca := must(standin.NewAuthority())(t)
	_, err := standin.StartAPIServer(standin.APIServerConfig{
		Name: "one", Addrs: addrs(t, "127.0.0.1:6443", "192.0.2.1:6443"), Network: l, Authority: ca,
	})
	if err == nil {
		t.Fatal("it listens on an address that the lab does not have")
	}
	must(l.Listen("tcp", "127.0.0.1:6443"))(t).Close()
}

func TestEchoSaysWhoItIsAndWhomItSees(t *testing.T) {
	l := lab.New(t)
	for _, tc := range []struct {
		network, addr string
		start         func(standin.Network, string, netip.AddrPort) (*standin.Echo, error)
	}{
		{"tcp", "127.0.0.1:53", standin.StartTCPEcho},
		{"tcp", "[::1]:53", standin.StartTCPEcho},
		{"udp", "127.0.0.1:53", standin.StartUDPEcho},
		{"udp", "[::1]:53", standin.StartUDPEcho},
	} {
		t.Run(tc.network+" on "+tc.addr, func(t *testing.T) {
			addr := netip.MustParseAddrPort(tc.addr)
			e := must(tc.start(l, "b1", addr))(t)
			defer e.Close()
			conn := must(l.DialContext(t.Context(), tc.network, tc.addr))(t)
			defer conn.Close()
			in := bufio.NewReader(conn)
			for _, data := range []string{"hello", "again"} {
				fmt.Fprintln(conn, data)
				reply := must(standin.ParseReply(must(in.ReadBytes('\n'))(t)))(t)
				want := standin.Reply{Server: "b1", Local: addr, Peer: must(netip.ParseAddrPort(conn.LocalAddr().String()))(t), Data: data}
				if tc.network == "udp" {
					want.Data += "\n"
				}
				if reply != want {
					t.Errorf("got %+v, want %+v", reply, want)
				}
			}
		})
	}
}
