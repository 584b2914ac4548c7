// Package proof connects to the API service for real and tells what became of
// the connection. Attached is not effective: a program at another cgroup, or one
// of others before ours, is seen by no other means. The programs remember each
// socket that they translate, so the proof is about the very socket that it made.
package proof

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Times of a proof. translateTime bounds a connection that need not be
// answered: the hook has run by the time that connect() has sent its SYN.
const (
	translateTime = 300 * time.Millisecond
	retryPause    = 10 * time.Millisecond
	// silence is how long an attempt is waited for before another one is made
	// beside it: it may have met a backend that hangs. The more hang, the less
	// the next is waited for, as each of two backends is met by half of them.
	// maxBeside bounds them.
	silence   = 600 * time.Millisecond
	maxBeside = 16
)

// Strength is how much a proof asks for.
type Strength string

// The strengths, the weakest first. Auto is verified where a CA of the node's
// cluster is known, and answered elsewhere.
const (
	Auto       Strength = "auto"
	Translated Strength = "translated" // a connect was translated, even if the backend refused
	Answered   Strength = "answered"   // the TCP connection was accepted
	Verified   Strength = "verified"   // TLS, with a certificate that the CA of this node's cluster signed
	Ready      Strength = "ready"      // /readyz, too, says 2xx, 401 or 403
)

// Proof is what became of a connection to one Service address.
type Proof struct {
	Service netip.AddrPort `json:"service"`
	Asked   Strength       `json:"asked"`
	Got     Strength       `json:"got,omitempty"` // empty: not even translated
	OK      bool           `json:"ok"`
	// Verified tells whether the certificate was looked at: without a CA, an
	// answer proves no more than that somebody accepts connections there.
	Verified bool           `json:"verified,omitempty"`
	Foreign  bool           `json:"foreign,omitempty"` // what answered is no API server of this cluster
	Direct   bool           `json:"direct,omitempty"`  // the connection went to Backend, not through the balancer
	Backend  netip.AddrPort `json:"backend,omitzero"`
	Cookie   uint64         `json:"socket_cookie,omitempty"`
	Millis   float64        `json:"duration_ms"`
	Attempts int            `json:"attempts"`
	Reason   string         `json:"reason,omitempty"`
	Time     time.Time      `json:"time"`
}

// Prover proves connections through the programs of a table.
type Prover struct {
	Sockets *ebpf.Map // bpf.MapSockRevNat of the table
	Asked   Strength
	Trust   *apiserver.Trust // of the node's cluster; nil if unknown
	// Verify is set where the certificate of every backend can be judged.
	Verify bool
}

// request is one attempt of a proof.
func (pr Prover) request(addr netip.AddrPort, timeout time.Duration) connectRequest {
	req := connectRequest{Addr: addr, Timeout: timeout}
	if pr.Asked == Translated {
		req.Timeout = min(timeout, translateTime)
		return req
	}
	if req.TLS = pr.Asked.AtLeast(Verified); req.TLS && pr.Verify {
		req.Trust = pr.Trust
	}
	return req
}

// Prove connects until the proof is as strong as asked for, or time is up, and
// returns the best that any attempt has seen. A backend may have died since it
// was probed, so a refusal isn't the end; and one that hangs must not use up
// the time, so after a while another attempt is made beside it.
func (pr Prover) Prove(ctx context.Context, conn Connector, svc netip.AddrPort) (Proof, error) {
	best := Proof{Service: svc, Asked: pr.Asked, Time: time.Now().UTC()}
	start := time.Now()
	type result struct {
		ans connectAnswer
		err error
	}
	results := make(chan result, maxBeside)
	pending, attempts := 0, 0
	attempt := func() {
		pending++
		attempts++
		req := pr.request(svc, time.Until(deadlineOf(ctx)))
		go func() {
			ans, err := conn.connect(ctx, req)
			results <- result{ans, err}
		}()
	}
	timer := time.NewTimer(0) // the next attempt
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			// An attempt without time for it would see less than those before.
			if pending < maxBeside && (attempts == 0 || time.Until(deadlineOf(ctx)) > 2*retryPause) {
				attempt()
				timer.Reset(silence / time.Duration(min(attempts, 4)))
			} else if pending == 0 {
				return best, nil
			}
		case r := <-results:
			pending--
			if r.err != nil {
				return best, r.err
			}
			p := best
			pr.judge(&p, r.ans)
			if best.Attempts == 0 || p.stronger(best) {
				best = p
			}
			best.Attempts, best.Millis = attempts, millis(time.Since(start))
			if best.OK || ctx.Err() != nil && pending == 0 {
				return best, nil
			}
			if left := time.Until(deadlineOf(ctx)); left > 2*retryPause {
				timer.Reset(min(retryPause*time.Duration(attempts), left-retryPause))
			} else if pending == 0 {
				return best, nil
			}
		}
	}
}

// strengths are all of them, the weakest first; none is weaker still.
var strengths = []Strength{Translated, Answered, Verified, Ready}

func (s Strength) rank() int { return slices.Index(strengths, s) }

// AtLeast reports whether a strength is that of another, or more.
func (s Strength) AtLeast(o Strength) bool { return s.rank() >= o.rank() }

// stronger reports whether a proof shows more than another. Of equals, one that
// says why goes before one that has only run out of time.
func (p Proof) stronger(o Proof) bool {
	if p.Got != o.Got {
		return p.Got.rank() > o.Got.rank()
	}
	return p.OK && !o.OK || o.Reason == noAnswer && p.Reason != noAnswer && p.Reason != ""
}

// noAnswer is how a probe words a time that is up.
const noAnswer = "no answer in time"

func deadlineOf(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

// Once makes one connection from this process, which is inside the cgroup, and tells what became of it.
func (pr Prover) Once(ctx context.Context, svc netip.AddrPort, timeout time.Duration) Proof {
	p := Proof{Service: svc, Asked: pr.Asked, Time: time.Now().UTC(), Attempts: 1}
	pr.judge(&p, connectOnce(ctx, pr.request(svc, timeout)))
	return p
}

// judge puts one connection's answer into the proof. Only a socket that our
// programs remember was translated by them: others move counters too.
func (pr Prover) judge(p *Proof, ans connectAnswer) {
	p.Cookie, p.Reason, p.Got = ans.Cookie, ans.Error, ""
	t, found, err := translation(pr.Sockets, ans.Cookie)
	if !found || t.Frontend.Addr() != p.Service.Addr() || t.FrontendPort.Uint16() != p.Service.Port() {
		p.OK = false
		switch {
		case err != nil:
			p.Reason = fmt.Sprintf("read what the programs remember: %s", err)
		case p.Reason == "":
			p.Reason = "the connection was answered, but not by way of this balancer"
		}
		return
	}
	p.Backend = netip.AddrPortFrom(t.Backend.Addr(), t.BackendPort.Uint16())
	pr.grade(p, ans)
}

// grade tells how strong an answer is, and whether that is enough.
func (pr Prover) grade(p *Proof, ans connectAnswer) {
	p.Got = Translated
	if ans.Answered {
		p.Got = Answered
	}
	if ans.Verified {
		p.Got, p.Verified = Verified, true
	}
	if ans.Ready && (ans.Verified || !pr.Verify) {
		p.Got = Ready
	}
	p.OK = p.Got.AtLeast(p.Asked)
	p.Foreign = ans.Foreign
}

// ProveDirectly connects to servers themselves until one answers as it is asked for: nothing is translated.
func (pr Prover) ProveDirectly(ctx context.Context, svc netip.AddrPort, servers []netip.AddrPort) Proof {
	p := Proof{Service: svc, Asked: pr.Asked, Direct: true, Time: time.Now().UTC()}
	for _, s := range servers {
		if p.OK || s.Addr().Is4() != svc.Addr().Is4() {
			continue
		}
		p.Attempts++
		p.Backend = s
		ans := connectOnce(ctx, pr.request(s, time.Second))
		p.Cookie, p.Reason = ans.Cookie, ans.Error
		pr.grade(&p, ans)
		if p.Got == Translated { // nothing was translated here
			p.Got = ""
			p.OK = p.Asked == Translated
		}
	}
	p.Millis = millis(time.Since(p.Time))
	return p
}

// Describe says what became of proofs, in one line.
func Describe(proofs []Proof) string {
	var parts []string
	for _, p := range proofs {
		how := "through the balancer"
		if p.Direct {
			how = "directly"
		}
		switch {
		case p.Got == "":
			parts = append(parts, fmt.Sprintf("%s not translated: %s", p.Service, p.Reason))
		case p.OK && p.Got == Translated:
			parts = append(parts, fmt.Sprintf("%s translated to %s", p.Service, p.Backend))
		case p.OK:
			text := fmt.Sprintf("%s %s by %s %s in %.1f ms", p.Service, p.Got, p.Backend, how, p.Millis)
			if p.Got == Answered {
				text += " (only TCP is proven)"
			}
			parts = append(parts, text)
		default:
			parts = append(parts, fmt.Sprintf("%s is only %s, asked for was %s: %s", p.Service, p.Got, p.Asked, p.Reason))
		}
	}
	return strings.Join(parts, "; ")
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
