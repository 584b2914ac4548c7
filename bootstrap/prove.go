package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Times of a proof. translateTime bounds a connection that need not be
// answered: the hook has run by the time that connect() has sent its SYN.
const (
	translateTime = 300 * time.Millisecond
	retryPause    = 10 * time.Millisecond
	// silence is how long an attempt is waited for before another one is made
	// beside it: it may have met a backend that hangs. maxBeside bounds them.
	silence   = 600 * time.Millisecond
	maxBeside = 4
)

// prove makes sure that a connection to every API service address gets
// through, and makes the seed and the attachment final. On an error the stage
// takes both back.
func (s *stage) prove(ctx context.Context) (outcome, error) {
	if s.DryRun {
		return outcome{result: Skipped, reason: "dry run: would connect to " + s.frontendList()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	s.settings.prove = s.strength()
	if s.settings.prove == Verified && !s.verifiable() {
		return outcome{}, errors.New("--prove verified: no CA certificate of this node's cluster is known (`firsthop discover`), so no server can be verified; what this run changed of programs and table is taken back: use --prove answered, which proves TCP alone")
	}
	if s.scope == ScopeOff {
		s.report.Proofs = s.proveDirectly(ctx)
	} else if err := s.proveThrough(ctx); err != nil {
		return outcome{}, err
	}
	out := outcome{reason: describeProofs(s.report.Proofs)}
	// Where nothing worked before, to take back what works would help nobody. On a
	// node that served, the former state does more for it.
	if !s.report.Proven() && s.someProven() && s.volatile.Has(instance.KindUnproven, s.pins().Dir) {
		s.finalize(&out)
		return out, fmt.Errorf("%s; what works is kept", out.reason)
	}
	if !s.report.Proven() {
		return out, fmt.Errorf("%s%s", out.reason, s.proofAdvice())
	}
	for _, p := range s.report.Proofs {
		switch {
		case p.Got == Translated:
			out.warnings = append(out.warnings, fmt.Sprintf("%s is translated, but no API server answers yet: %s", p.Service, p.Reason))
		case p.Got != Ready && p.Reason != "":
			out.warnings = append(out.warnings, fmt.Sprintf("%s: the API server %s is not ready: %s", p.Service, p.Backend, p.Reason))
		}
	}
	if !s.verifiable() && slices.ContainsFunc(s.report.Proofs, func(p Proof) bool { return p.Got.rank() >= Answered.rank() }) {
		out.warnings = append(out.warnings, "no CA certificate of this node's cluster is known, so it was not verified that the servers are its API servers")
	}
	s.finalize(&out)
	return out, nil
}

// strength is how much the proof asks for: what was given, else as much as can
// be seen. Where no CA is known, nothing can be verified.
func (s *stage) strength() Strength {
	if s.settings.prove != Auto {
		return s.settings.prove
	}
	if s.beforeKubeadm() {
		return Translated
	}
	if s.verifiable() {
		return Verified
	}
	return Answered
}

// beforeKubeadm reports whether kubeadm has not run yet: its file was given, and
// no API server of those that are known answers. Then there is nothing to prove
// but the translation.
func (s *stage) beforeKubeadm() bool {
	return s.given.Kubeadm != nil && !slices.ContainsFunc(s.found.Endpoints, func(e discover.Endpoint) bool { return e.State != apiserver.Dead })
}

// verifiable reports whether the certificate of every server in use can be
// judged.
func (s *stage) verifiable() bool {
	usable := s.found.Usable()
	return len(usable) > 0 && !slices.ContainsFunc(usable, func(e apiserver.Endpoint) bool { return !s.found.Trust.Verifies(e) })
}

// finalize makes seed and attachment final. What goes wrong is no more than
// left-overs.
func (s *stage) finalize(out *outcome) {
	for _, err := range []error{s.attached.Commit(), s.seeded.Commit(), s.proven()} {
		if err != nil {
			out.warnings = append(out.warnings, err.Error())
		}
	}
}

// someProven reports whether one of several Service addresses was proven.
func (s *stage) someProven() bool {
	return slices.ContainsFunc(s.report.Proofs, func(p Proof) bool { return p.OK })
}

func (s *stage) frontendList() string {
	var parts []string
	for _, a := range s.found.ServiceAddrs() {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, ", ")
}

// proofAdvice says what to do about a failed proof.
func (s *stage) proofAdvice() string {
	const undone = "; what this run changed of programs and table is taken back"
	if other := s.otherBalancer(); other != "" {
		return undone + ": another firsthop serves this cgroup, with another bpffs (program " + other + "): use that one's --bpffs, or uninstall it first"
	}
	is := func(match func(Proof) bool) bool { return slices.ContainsFunc(s.report.Proofs, match) }
	switch {
	case is(func(p Proof) bool {
		return p.Got == Translated && strings.Contains(p.Reason, "operation not permitted")
	}):
		return undone + ": a program of somebody else at the same hook may refuse the connection (`firsthop check` lists them)"
	case is(func(p Proof) bool { return p.Got == "" }):
		return undone + ": the connection wasn't translated, so the programs don't run for processes of " + s.cgroup.HostPath + ": is it the true root (`firsthop check`), and does another program at the same hook get in the way?"
	case is(func(p Proof) bool { return !p.OK && p.Foreign && s.found.Cluster != nil }):
		return undone + ": what answers at the known addresses is no API server of the cluster that " + s.found.Cluster.By + " names (`firsthop discover` lists them)"
	case is(func(p Proof) bool { return !p.OK && (p.Got == Answered || p.Got == Verified) }):
		return undone + ": servers accept connections there, but do not answer as an API server that works" + s.endpointErrors()
	}
	return undone + ": no API server answered at the known addresses" + s.endpointErrors() + "; --prove translated accepts that, as for a control plane that starts later"
}

// maxNamed bounds the endpoints that a message names.
const maxNamed = 5

// endpointErrors names the endpoints in use, each with what its own probe said.
func (s *stage) endpointErrors() string {
	usable := s.found.Usable()
	var parts []string
	for _, e := range s.found.Endpoints {
		if e.Detail == "" || !slices.Contains(usable, e.Endpoint) {
			continue
		}
		if len(parts) == maxNamed {
			parts = append(parts, "and others (`firsthop discover`)")
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %s", e.Endpoint, e.Detail))
	}
	if len(parts) == 0 {
		return " (`firsthop discover` lists them)"
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// otherBalancer is a program of another instance at connect4, which translates
// before ours can.
func (s *stage) otherBalancer() string {
	hooks, err := attach.Inspect(s.pins(), s.seeded.Maps, s.cgroup.Path)
	if err != nil {
		return ""
	}
	for _, h := range hooks {
		for _, f := range h.Foreign {
			if h.Hook == "connect4" && strings.Contains(f, `"fh_connect4"`) {
				return f
			}
		}
	}
	return ""
}

func (s *stage) proveThrough(ctx context.Context) error {
	conn, err := s.connector.wait()
	if err != nil {
		return err
	}
	for _, svc := range s.found.ServiceAddrs() {
		p, err := prover{s.seeded.Maps, s.settings.prove, s.found.Trust, s.verifiable()}.one(ctx, conn, svc)
		if err != nil {
			return err
		}
		s.report.Proofs = append(s.report.Proofs, p)
	}
	return nil
}

// prover proves connections through the programs of a table.
type prover struct {
	maps  *bpf.Maps
	asked Strength
	trust *apiserver.Trust // of the node's cluster; nil if unknown
	// verify is set where the certificate of every backend can be judged.
	verify bool
}

// request is one attempt of a proof.
func (pr prover) request(addr netip.AddrPort, timeout time.Duration) connectRequest {
	req := connectRequest{Addr: addr, Timeout: timeout}
	if pr.asked == Translated {
		req.Timeout = min(timeout, translateTime)
		return req
	}
	if req.TLS = pr.asked.rank() >= Verified.rank(); req.TLS && pr.verify {
		req.Trust = pr.trust
	}
	return req
}

// one connects until the proof is as strong as asked for, or time is up, and
// returns the best that any attempt has seen. A backend may have died since it
// was probed, so a refusal isn't the end; and one that hangs must not use up
// the time, so after a while another attempt is made beside it.
func (pr prover) one(ctx context.Context, conn connector, svc netip.AddrPort) (Proof, error) {
	best := Proof{Service: svc, Asked: pr.asked, Time: time.Now().UTC()}
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
				timer.Reset(silence)
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

// judge puts one connection's answer into the proof. Only a socket that our
// programs remember was translated by them: others move counters too.
func (pr prover) judge(p *Proof, ans connectAnswer) {
	p.Cookie, p.Reason, p.Got = ans.Cookie, ans.Error, ""
	peer, ok := pr.remembered(ans.Cookie)
	if !ok || peer.Frontend.Addr() != p.Service.Addr() || peer.FrontendPort.Uint16() != p.Service.Port() {
		p.OK = false
		if p.Reason == "" {
			p.Reason = "the connection was answered, but not by way of this balancer"
		}
		return
	}
	p.Backend = netip.AddrPortFrom(peer.Backend.Addr(), peer.BackendPort.Uint16())
	pr.grade(p, ans)
}

// grade tells how strong an answer is, and whether that is enough.
func (pr prover) grade(p *Proof, ans connectAnswer) {
	p.Got = Translated
	if ans.Answered {
		p.Got = Answered
	}
	if ans.Verified {
		p.Got, p.Verified = Verified, true
	}
	if ans.Ready && (ans.Verified || !pr.verify) {
		p.Got = Ready
	}
	p.OK = p.Got.rank() >= p.Asked.rank()
	p.Foreign = ans.Foreign
}

// remembered looks a socket up in the programs' own memory.
func (pr prover) remembered(cookie uint64) (bpf.Peer, bool) {
	m := pr.maps.Map(bpf.MapPeer)
	var peer bpf.Peer
	at := uint32(cookie) & (m.MaxEntries() - 1)
	if err := m.LookupWithFlags(at, &peer, ebpf.LookupLock); err != nil {
		return peer, false
	}
	return peer, cookie != 0 && peer.Cookie == cookie
}

// proveDirectly is the proof for --scope off: an endpoint itself answers.
func (s *stage) proveDirectly(ctx context.Context) []Proof {
	var proofs []Proof
	for _, svc := range s.found.ServiceAddrs() {
		p := Proof{Service: svc, Asked: s.settings.prove, Direct: true, Time: time.Now().UTC()}
		pr := prover{asked: p.Asked, trust: s.found.Trust, verify: s.verifiable()}
		for _, e := range s.found.Usable() {
			if p.OK || !e.Resolved() || e.Addr.Addr().Is4() != svc.Addr().Is4() {
				continue
			}
			p.Attempts++
			p.Backend = e.Addr
			ans := connectOnce(ctx, pr.request(e.Addr, time.Second))
			p.Cookie, p.Reason = ans.Cookie, ans.Error
			pr.grade(&p, ans)
			if p.Got == Translated { // nothing was translated here
				p.Got = ""
				p.OK = p.Asked == Translated
			}
		}
		p.Millis = millis(time.Since(p.Time))
		proofs = append(proofs, p)
	}
	return proofs
}

func describeProofs(proofs []Proof) string {
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
