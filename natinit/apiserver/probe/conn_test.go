package probe

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// A server that closes right after the handshake is as sick as one that closes after the question, whichever the
// transport notices first.
func TestConnThatEndsBeforeItIsAsked(t *testing.T) {
	cert := apitest.NewCA(t).Server(t, apitest.Names...)
	at := listen(t, "10.99.0.1:0", func(c net.Conn) {
		if err := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake(); err != nil {
			t.Error(err)
		}
	})
	p := newProber(Config{Strength: Ready})
	for range 500 {
		r := Result{Endpoint: at}
		c := p.open(t.Context(), &r)
		if c == nil {
			t.Fatalf("got %v", r.Err)
		}
		if c.ask(t.Context(), &r, true); r.State != apiserver.NotReady || r.Kind != apiserver.KindClosed {
			t.Fatalf("got %v, %s: %v", r.State, r.Kind, r.Err)
		}
	}
}

// The transport hands the connection over as the body of such an answer.
func TestConnEndsOnSwitchingProtocols(t *testing.T) {
	held := make(chan net.Conn, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, err = c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"))
			held <- c
		}
		if err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	raw, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c := newConn(raw, tc, apiserver.Verdict{})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan bool, 1)
	go func() {
		done <- c.ask(ctx, &Result{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort(srv.Listener.Addr().String())}}, false)
	}()
	defer func() { (<-held).Close() }()
	select {
	case again := <-done:
		if again {
			t.Error("it is asked again")
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for a body without end")
	}
}
