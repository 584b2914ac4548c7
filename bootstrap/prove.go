package bootstrap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Times of a proof. translateTime bounds a connection that need not be
// answered: the hook has run by the time that connect() has sent its SYN.
const (
	translateTime = 300 * time.Millisecond
	answerTime    = time.Second
	retryPause    = 10 * time.Millisecond
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
		if p.Got == Translated {
			out.warnings = append(out.warnings, fmt.Sprintf("%s is translated, but no API server answers yet: %s", p.Service, p.Reason))
		}
	}
	s.finalize(&out)
	return out, nil
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
	for _, p := range s.report.Proofs {
		if p.Got == Translated && strings.Contains(p.Reason, "operation not permitted") {
			return undone + ": a program of somebody else at the same hook may refuse the connection (`firsthop check` lists them)"
		}
		if p.Got == "" {
			return undone + ": the connection wasn't translated, so the programs don't run for processes of " + s.cgroup.HostPath + ": is it the true root (`firsthop check`), and does another program at the same hook get in the way?"
		}
	}
	return undone + ": no API server answered at the known addresses (`firsthop discover` lists them); --prove translated accepts that, as for a control plane that starts later"
}

// otherBalancer is a program of another instance at connect4, which translates
// before ours can.
func (s *stage) otherBalancer() string {
	hooks, err := natinit.Inspect(s.pins(), s.seeded.Maps, s.cgroup.Path)
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
		p, err := prover{s.seeded.Maps, s.settings.prove}.one(ctx, conn, svc)
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
}

// one connects until the proof is as strong as asked for, or time is up.
// A backend may have died since it was probed, so a refusal isn't the end.
func (pr prover) one(ctx context.Context, conn connector, svc netip.AddrPort) (Proof, error) {
	p := Proof{Service: svc, Asked: pr.asked, Time: time.Now().UTC()}
	start := time.Now()
	for {
		p.Attempts++
		timeout := answerTime
		if p.Asked == Translated {
			timeout = translateTime
		}
		if deadline, ok := ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(deadline))
		}
		ans, err := conn.connect(ctx, connectRequest{Addr: svc, Ready: p.Asked == Ready, Timeout: timeout})
		if err != nil {
			return p, err
		}
		pr.judge(&p, ans)
		p.Millis = millis(time.Since(start))
		if p.OK || ctx.Err() != nil || time.Until(deadlineOf(ctx)) < retryPause {
			return p, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause * time.Duration(p.Attempts)):
		}
	}
}

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
	p.Got = Translated
	if ans.Answered {
		p.Got = Answered
	}
	if ans.Ready {
		p.Got = Ready
	}
	order := []Strength{Translated, Answered, Ready}
	p.OK = slices.Index(order, p.Got) >= slices.Index(order, p.Asked)
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
		for _, e := range s.found.Usable() {
			if p.OK || !e.Resolved() || e.Addr.Addr().Is4() != svc.Addr().Is4() {
				continue
			}
			p.Attempts++
			p.Backend = e.Addr
			ans := connectOnce(ctx, connectRequest{Addr: e.Addr, Ready: p.Asked == Ready, Timeout: answerTime})
			p.Cookie, p.Reason = ans.Cookie, ans.Error
			p.OK = p.Asked == Translated || ans.Answered && p.Asked == Answered || ans.Ready
			if ans.Answered {
				p.Got = Answered
			}
			if ans.Ready {
				p.Got = Ready
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
			parts = append(parts, fmt.Sprintf("%s %s by %s %s in %.1f ms", p.Service, p.Got, p.Backend, how, p.Millis))
		default:
			parts = append(parts, fmt.Sprintf("%s is only %s, asked for was %s: %s", p.Service, p.Got, p.Asked, p.Reason))
		}
	}
	return strings.Join(parts, "; ")
}
