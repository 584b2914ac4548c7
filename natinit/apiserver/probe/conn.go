package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// maxAnswer bounds status line, headers and body of an answer together.
const maxAnswer = 64 << 10

// conn is one TLS connection to an API server, whose end is noticed when it
// happens and not at the next question.
type conn struct {
	verdict apiserver.Verdict
	born    time.Time
	lost    chan struct{}
	raw     *watched
	http    *http.Transport // over this connection alone
}

// watched tells when the transport, which reads all the time, closes it. It
// ends for who sends more than an answer, or one that nobody asked for.
type watched struct {
	net.Conn
	raw    net.Conn
	closed func()
	budget atomic.Int64
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.budget.Add(-int64(n)) < 0 {
		return 0, io.EOF
	}
	return n, err
}

// Close sends no close_notify: with a dead peer that would wait.
func (w *watched) Close() error {
	w.closed()
	return w.raw.Close()
}

func newConn(raw net.Conn, tc *tls.Conn, v apiserver.Verdict) *conn {
	c := &conn{verdict: v, born: time.Now(), lost: make(chan struct{})}
	c.raw = &watched{Conn: tc, raw: raw, closed: sync.OnceFunc(func() { close(c.lost) })}
	first := make(chan net.Conn, 1)
	first <- c.raw
	c.http = &http.Transport{
		DisableCompression: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-first:
				return conn, nil
			default:
				return nil, fmt.Errorf("the connection has ended: %w", io.EOF)
			}
		},
	}
	return c
}

// Close ends the connection.
func (c *conn) Close() { c.raw.Close() }

// over reports whether the connection has ended.
func (c *conn) over() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

// tell enters what the handshake told.
func (c *conn) tell(r *Result) {
	r.Verified, r.Certificate, r.Answers = c.verdict.Verified, c.verdict.Leaf, true
}

// ask asks /readyz, and reports whether it can be asked again. Nothing follows
// redirects, and only the status counts.
func (c *conn) ask(ctx context.Context, r *Result, last bool) (again bool) {
	at := r.Endpoint.HostPort()
	req := (&http.Request{
		Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: at, Path: "/readyz"}, Close: last,
		Header: http.Header{"User-Agent": {"firsthop"}, "Accept": {"*/*"}},
	}).WithContext(ctx)
	c.raw.budget.Store(maxAnswer)
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		c.Close()
		if errorKind(err) == apiserver.KindOther && c.raw.budget.Load() == maxAnswer {
			err = io.EOF // it had ended before the question, for which the transport has an error of its own
		}
		r.answerFailed(err)
		return false
	}
	defer resp.Body.Close()
	r.judge(resp.StatusCode)
	if !last && !resp.Close && resp.StatusCode != http.StatusSwitchingProtocols { // whose body nothing ends, not even ctx
		_, err := io.Copy(io.Discard, resp.Body)
		again = err == nil
		c.raw.budget.Store(0)
	}
	if !again {
		c.Close()
	}
	return again
}
