package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Checker probes one endpoint again and again: TLS and GET /readyz over one
// kept connection, so that a probe costs one small packet each way and no
// handshake. Its methods are called by one goroutine at a time. At most two
// sockets are open at a time, and none after Close.
type Checker struct {
	endpoint  apiserver.Endpoint
	p         prober
	headStart time.Duration
	maxAge    time.Duration
	kept      *keptConn
}

// keptFor is how long a connection is kept. A server that only serves its old
// connections (no file descriptors left, a packet filter that lets established
// ones pass, a balancer that has moved) refuses its new clients, and only a
// new connection shows that. A thousand nodes make 17 handshakes a second, spread
// over the API servers.
const keptFor = time.Minute

// NewChecker makes a checker that has not connected yet. Of cfg, Strength is
// always Ready; Timeout bounds a whole Check with its second attempt.
func NewChecker(e apiserver.Endpoint, cfg Config) *Checker {
	cfg.Strength = Ready
	p := newProber(cfg)
	return &Checker{endpoint: e, p: p, headStart: p.cfg.Timeout * 3 / 8, maxAge: keptFor}
}

// Check asks once, within the timeout. Latency of the result is the time from
// question to answer, without connecting.
//
// With confirm, two attempts must fail before it says so, and the last one is
// on a new connection; so it is, too, when there was a kept one. One failure
// says little: a server or a balancer may close an idle connection, a
// connection table may have forgotten it, one lost SYN costs the kernel a
// second. The second attempt begins at once when the first has failed, and
// beside the first when that is silent for three eighths of the timeout: the
// first that finds it live wins, and the failure of both costs no more time
// than that of one.
func (c *Checker) Check(ctx context.Context, confirm bool) Result {
	if !c.endpoint.Resolved() {
		return c.p.probe(ctx, c.endpoint)
	}
	ctx, cancel := context.WithTimeout(ctx, c.p.cfg.Timeout)
	defer cancel()
	if c.kept != nil && (c.kept.over() || time.Since(c.kept.born) > c.maxAge) {
		c.drop()
	}
	results := make(chan attempt, 2)
	pending := 0
	start := func(k *keptConn) {
		pending++
		go func() { results <- c.attempt(ctx, k) }()
	}
	again := confirm || c.kept != nil
	start(c.kept)
	c.kept = nil
	silent := time.NewTimer(c.headStart)
	defer silent.Stop()

	var best *attempt
	for pending > 0 {
		select {
		case a := <-results:
			pending--
			if a.result.State == apiserver.Live {
				c.kept = a.conn
				cancel()
				for ; pending > 0; pending-- {
					(<-results).close()
				}
				return a.result
			}
			a.close()
			if best == nil || a.says() < best.says() {
				best = &a
			}
			if again {
				again = false
				start(nil)
			}
		case <-silent.C:
			if again {
				again = false
				start(nil)
			}
		}
	}
	return best.result
}

// Lost is closed when the kept connection ends by itself: whoever waits for
// the next probe better probes now. It is nil when there is none.
func (c *Checker) Lost() <-chan struct{} {
	if c.kept == nil {
		return nil
	}
	return c.kept.lost
}

// Close closes the kept connection. The checker can be used again.
func (c *Checker) Close() { c.drop() }

func (c *Checker) drop() {
	if c.kept != nil {
		c.kept.close()
		c.kept = nil
	}
}

// attempt is one question and what became of it.
type attempt struct {
	result Result
	kept   bool      // asked over a connection that was there
	conn   *keptConn // nil if it cannot be used again
}

// says orders failed attempts, the one that says most first: an answer, even a bad
// one, then how far a new connection got, then the silence of an old one, whose server
// may have gone.
func (a *attempt) says() int {
	r := &a.result
	switch {
	case r.Status != 0:
		return 0
	case a.kept:
		return 4
	case r.Answers:
		return 1
	case r.Kind != apiserver.KindTimeout:
		return 2
	}
	return 3
}

func (a attempt) close() {
	if a.conn != nil {
		a.conn.close()
	}
}

// attempt asks over k, or over a new connection if k is nil.
func (c *Checker) attempt(ctx context.Context, k *keptConn) (a attempt) {
	r := &a.result
	a.kept = k != nil
	r.Endpoint = c.endpoint
	start := time.Now()
	defer func() { r.Latency = time.Since(start) }()
	if k == nil {
		conn, err := c.p.dial(ctx, "tcp", c.endpoint.Addr.String())
		if err != nil {
			r.State, r.Kind, r.Err = apiserver.Dead, errorKind(err), Plain(err)
			return a
		}
		var v apiserver.Verdict
		tc := tls.Client(conn, c.p.tlsConfig(c.endpoint, &v))
		err = AwaitRandomness(ctx)
		if err == nil {
			err = tc.HandshakeContext(ctx)
		}
		if err != nil {
			conn.Close()
			r.handshakeFailed(err)
			return a
		}
		if r.shakenHands(v); r.Kind == apiserver.KindExpired {
			conn.Close()
			return a
		}
		k = newKeptConn(conn, tc)
		k.verified, k.leaf = v.Verified, v.Leaf
		start = time.Now()
	}
	a.conn = k
	r.Verified, r.Certificate = k.verified, k.leaf
	status, err := k.ask(ctx, c.endpoint)
	if err != nil {
		r.answerFailed(err)
		return a
	}
	r.judge(status)
	if k.over() {
		k.close()
		a.conn = nil
	}
	return a
}

// keptConn is one TLS connection and the goroutine that reads from it, so
// that its end is noticed when it happens and not at the next question.
type keptConn struct {
	conn     net.Conn
	tls      *tls.Conn
	verified bool
	leaf     *x509.Certificate
	born     time.Time
	asked    atomic.Bool // a question has no answer yet
	answers  chan int    // HTTP status; room for one
	lost     chan struct{}
	err      error // why it ended; read after lost is closed
}

var errUnasked = errors.New("server sent data that nobody asked for")

func newKeptConn(conn net.Conn, tc *tls.Conn) *keptConn {
	k := &keptConn{conn: conn, tls: tc, born: time.Now(), answers: make(chan int, 1), lost: make(chan struct{})}
	go func() {
		defer close(k.lost)
		k.err = k.read()
	}()
	return k
}

// close makes the reader end. It sends no close_notify: with a dead peer that
// would wait.
func (k *keptConn) close() { k.conn.Close() }

// over reports whether the connection has ended.
func (k *keptConn) over() bool {
	select {
	case <-k.lost:
		return true
	default:
		return false
	}
}

// ask sends one request and waits for its status.
func (k *keptConn) ask(ctx context.Context, e apiserver.Endpoint) (status int, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = k.conn.SetWriteDeadline(deadline)
	}
	k.asked.Store(true)
	if _, err := fmt.Fprintf(k.tls, "GET /readyz HTTP/1.1\r\nHost: %s\r\nUser-Agent: firsthop\r\nAccept: */*\r\n\r\n", e.HostPort()); err != nil {
		k.close()
		return 0, err
	}
	select {
	case status := <-k.answers:
		return status, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-k.lost:
		err = k.err
	}
	select {
	case status := <-k.answers: // the last one, with Connection: close; or one that waits for a process that was stopped
		return status, nil
	default:
		k.close()
		return 0, err
	}
}

// maxAnswer bounds status line, headers and body of an answer together.
const maxAnswer = 64 << 10

// read reads answers until the connection ends, and says why it did.
func (k *keptConn) read() error {
	limited := &io.LimitedReader{R: k.tls}
	br := bufio.NewReader(limited)
	for {
		limited.N = maxAnswer
		if _, err := br.Peek(1); err != nil {
			return err
		}
		if !k.asked.Swap(false) {
			return errUnasked
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return err
		}
		// The body's length decides nothing but whether the connection is kept.
		_, err = io.Copy(io.Discard, resp.Body)
		if err != nil || resp.Close || limited.N <= 0 {
			k.conn.Close()
			k.answers <- resp.StatusCode
			return io.EOF
		}
		k.answers <- resp.StatusCode
	}
}
