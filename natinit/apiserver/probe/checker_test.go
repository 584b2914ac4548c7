package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// counted counts the connections that a checker opens.
func counted(n *atomic.Int32) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		n.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

func newChecker(t *testing.T, e apiserver.Endpoint, cfg Config) *Checker {
	t.Helper()
	c := NewChecker(e, cfg)
	t.Cleanup(c.Close)
	return c
}

func TestAQuestionOverAKeptConnection(t *testing.T) {
	ca := apitest.NewCA(t)
	cluster := &apitest.Cluster{CA: ca}
	at, stop := cluster.Serve(t, "10.99.0.1:0")
	var dials atomic.Int32
	c := newChecker(t, apiserver.Endpoint{Addr: at}, Config{Trust: &apiserver.Trust{CA: ca.PEM}, Dial: counted(&dials)})
	for range 20 {
		if r := c.Check(t.Context(), true); r.State != apiserver.Live || r.Status != 200 || !r.Verified {
			t.Fatalf("got %+v", r)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections for 20 questions", n)
	}
	stop()
	select {
	case <-c.Lost():
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the server was not noticed")
	}
	if r := c.Check(t.Context(), true); r.State != apiserver.Dead || r.Kind != apiserver.KindRefused || dials.Load() != 3 {
		t.Errorf("got %+v after %d connections: two must be refused before it is dead", r, dials.Load())
	}
	if r := c.Check(t.Context(), false); r.State != apiserver.Dead || dials.Load() != 4 {
		t.Errorf("got %+v after %d connections: one is enough for what was dead", r, dials.Load())
	}
}

func TestAConnectionThatWasClosedWhileIdleIsNoFailure(t *testing.T) {
	ca := apitest.NewCA(t)
	for name, answer := range map[string]string{
		"announced":   "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"not said":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"no length":   "HTTP/1.1 200 OK\r\n\r\nok",
		"HTTP/1.0":    "HTTP/1.0 200 OK\r\n\r\nok",
		"no body":     "HTTP/1.1 204 No Content\r\n\r\n",
		"more to say": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			at := tlsListen(t, ca, "10.99.0.1:0", answer, apitest.Names...)
			c := newChecker(t, at, Config{Trust: &apiserver.Trust{CA: ca.PEM}})
			for range 5 {
				if r := c.Check(t.Context(), true); r.State != apiserver.Live {
					t.Fatalf("got %+v", r)
				}
			}
		})
	}
}

// A server that is alive on its old connections and takes no new ones, and the reverse.
func TestOldAndNewConnectionsAreBothTried(t *testing.T) {
	ca := apitest.NewCA(t)
	cert := ca.Server(t, apitest.Names...)
	var mute, refuse atomic.Bool
	at := listen(t, "10.99.0.1:0", func(conn net.Conn) {
		if refuse.Load() {
			return
		}
		tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		first := true
		for br := bufio.NewReader(tc); ; first = false {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if mute.Load() && !first {
				<-req.Context().Done()
			}
			io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	c := newChecker(t, at, Config{Trust: &apiserver.Trust{CA: ca.PEM}})
	check := func(want apiserver.State) {
		t.Helper()
		if r := c.Check(t.Context(), true); r.State != want {
			t.Fatalf("got %+v, want %s", r, want)
		}
	}
	check(apiserver.Live)
	mute.Store(true) // the kept connection falls silent; a new one answers its first question
	check(apiserver.Live)
	mute.Store(false)
	check(apiserver.Live)
	refuse.Store(true)
	check(apiserver.Live) // the kept one is not old enough
	c.maxAge = 0
	check(apiserver.NotReady)
}

func TestAnAnswerNobodyAskedForEndsTheConnection(t *testing.T) {
	ca := apitest.NewCA(t)
	at := tlsListen(t, ca, "10.99.0.1:0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"+strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 10), apitest.Names...)
	c := newChecker(t, at, Config{Trust: &apiserver.Trust{CA: ca.PEM}})
	if r := c.Check(t.Context(), false); r.State != apiserver.Live {
		t.Fatalf("got %+v", r)
	}
	lost := c.Lost()
	if lost == nil {
		return // it has ended before the check was over
	}
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Fatal("a stale answer could pass for the next one")
	}
}

func TestACheckKeepsItsTimeoutWithBothAttempts(t *testing.T) {
	ca := apitest.NewCA(t)
	hang := make(chan struct{})
	defer close(hang)
	for name, at := range map[string]apiserver.Endpoint{
		"accepted, then silence": listen(t, "10.99.0.1:0", func(net.Conn) { <-hang }),
		"silence":                ep(apitest.Silent4 + ":6443"),
	} {
		c := newChecker(t, at, Config{Trust: &apiserver.Trust{CA: ca.PEM}, Timeout: 300 * time.Millisecond})
		start := time.Now()
		r := c.Check(t.Context(), true)
		if d := time.Since(start); r.State == apiserver.Live || r.Kind != apiserver.KindTimeout || d < 250*time.Millisecond || d > 2*time.Second {
			t.Errorf("%s: got %+v after %v", name, r, d)
		}
	}
}

func TestAClosedCheckerLeavesNothing(t *testing.T) {
	ca := apitest.NewCA(t)
	at, _ := (&apitest.Cluster{CA: ca}).Serve(t, "10.99.0.1:0")
	sick, _ := (&apitest.Cluster{CA: ca, Ready: 500}).Serve(t, "10.99.0.1:0")
	before := runtime.NumGoroutine()
	for range 50 {
		for _, e := range []apiserver.Endpoint{{Addr: at}, {Addr: sick}, ep("10.99.0.9:1")} {
			c := NewChecker(e, Config{Trust: &apiserver.Trust{CA: ca.PEM}})
			c.Check(t.Context(), true)
			c.Close()
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before+5 { // the server's own go a little later
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, before there were %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// BenchmarkCheck is one question over the kept connection; the server's part of the CPU is in it.
func BenchmarkCheck(b *testing.B) {
	ca := apitest.NewCA(b)
	at, _ := (&apitest.Cluster{CA: ca}).Serve(b, "10.99.0.1:0")
	c := NewChecker(apiserver.Endpoint{Addr: at}, Config{Trust: &apiserver.Trust{CA: ca.PEM}})
	defer c.Close()
	for b.Loop() {
		if r := c.Check(context.Background(), true); r.State != apiserver.Live {
			b.Fatal(r)
		}
	}
}
