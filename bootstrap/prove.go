package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

// prove makes sure that a connection to every API service address gets
// through, and makes the seed and the attachment final. On an error the stage
// takes both back.
func (s *stage) prove(ctx context.Context) (outcome, error) {
	if s.DryRun {
		return outcome{result: Skipped, reason: "dry run: would connect to " + Join(s.found.ServiceAddrs(), ", ")}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	s.settings.prove = s.strength()
	if s.settings.prove == proof.Verified && !s.verifiable() {
		return outcome{}, errors.New("--prove verified: no CA certificate of this node's cluster is known (`firsthop discover`), so no server can be verified" + s.undone() + ": use --prove answered, which proves TCP alone")
	}
	if s.scope == ScopeOff {
		s.report.Proofs = s.proveDirectly(ctx)
	} else if err := s.proveThrough(ctx); err != nil {
		return outcome{}, err
	}
	out := outcome{reason: proof.Describe(s.report.Proofs)}
	// Where nothing worked before, to take back what works would help nobody. On a
	// node that served, the former state does more for it.
	if !s.report.Proven() && s.someProven() && s.volatile.Has(instance.KindPending, s.pins().Dir) {
		s.finalize(&out)
		return out, fmt.Errorf("%s; what works is kept", out.reason)
	}
	if !s.report.Proven() {
		return out, fmt.Errorf("%s%s", out.reason, s.proofAdvice())
	}
	for _, p := range s.report.Proofs {
		switch {
		case p.Got == proof.Translated:
			out.warnings = append(out.warnings, fmt.Sprintf("%s is translated, but no API server answers yet: %s", p.Service, p.Reason))
		case p.Got != proof.Ready && p.Reason != "":
			out.warnings = append(out.warnings, fmt.Sprintf("%s: the API server %s is not ready: %s", p.Service, p.Backend, p.Reason))
		}
	}
	if !s.verifiable() && slices.ContainsFunc(s.report.Proofs, func(p proof.Proof) bool { return p.Got.AtLeast(proof.Answered) }) {
		out.warnings = append(out.warnings, "no CA certificate of this node's cluster is known, so it was not verified that the servers are its API servers")
	}
	s.finalize(&out)
	return out, nil
}

// strength is how much the proof asks for: what was given, else as much as can
// be seen. Where no CA is known, nothing can be verified.
func (s *stage) strength() proof.Strength {
	if s.settings.prove != proof.Auto {
		return s.settings.prove
	}
	if s.beforeKubeadm() {
		return proof.Translated
	}
	if s.verifiable() {
		return proof.Verified
	}
	return proof.Answered
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
	return slices.ContainsFunc(s.report.Proofs, func(p proof.Proof) bool { return p.OK })
}

// undone says what becomes of what this run did when the proof fails.
func (s *stage) undone() string {
	if s.seeded != nil && s.seeded.Recovered {
		return "; what this run changed of the table is taken back, but not the programs with which it ended a growth that had been killed"
	}
	return "; what this run changed of programs and table is taken back"
}

// proofAdvice says what to do about a failed proof.
func (s *stage) proofAdvice() string {
	undone := s.undone()
	hooks, _ := attach.Inspect(s.pins(), s.seeded.Maps, s.cgroup.Path) // what can't be read is no reason
	if _, other := Rival(hooks); other != "" {
		return undone + ": another firsthop serves this cgroup, with another bpffs (program " + other + "): use that one's --bpffs, or uninstall it first"
	}
	is := func(match func(proof.Proof) bool) bool { return slices.ContainsFunc(s.report.Proofs, match) }
	switch {
	case is(func(p proof.Proof) bool {
		return p.Got == proof.Translated && strings.Contains(p.Reason, "operation not permitted")
	}):
		return undone + ": a program of somebody else at the same hook may refuse the connection (`firsthop check` lists them)"
	case is(func(p proof.Proof) bool { return p.Got == "" }):
		return undone + ": the connection wasn't translated, so the programs don't run for processes of " + s.cgroup.HostPath + ": is it the true root (`firsthop check`), and does another program at the same hook get in the way?"
	case is(func(p proof.Proof) bool { return !p.OK && p.Foreign && s.found.Cluster != nil }):
		return undone + ": what answers at the known addresses is no API server of the cluster that " + s.found.Cluster.By + " names (`firsthop discover` lists them)"
	case is(func(p proof.Proof) bool { return !p.OK && (p.Got == proof.Answered || p.Got == proof.Verified) }):
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

// Rival is a hook with a program of another firsthop, which has another bpffs, and
// that program; empty: there is none. Of two, only the first is effective.
func Rival(hooks []attach.State) (hook, program string) {
	for _, h := range hooks {
		for _, f := range h.Foreign {
			if strings.Contains(f, `"fh_`) {
				return h.Hook, f
			}
		}
	}
	return "", ""
}

func (s *stage) proveThrough(ctx context.Context) error {
	conn, err := s.connector()
	if err != nil {
		return err
	}
	for _, svc := range s.found.ServiceAddrs() {
		p, err := proof.Prover{Sockets: s.seeded.Maps.Map(bpf.MapSockRevNat), Asked: s.settings.prove, Trust: s.found.Trust, Verify: s.verifiable()}.Prove(ctx, conn, svc)
		if err != nil {
			return err
		}
		s.report.Proofs = append(s.report.Proofs, p)
	}
	return nil
}

// proveDirectly is the proof for --scope off: an endpoint itself answers.
func (s *stage) proveDirectly(ctx context.Context) []proof.Proof {
	pr := proof.Prover{Asked: s.settings.prove, Trust: s.found.Trust, Verify: s.verifiable()}
	var servers []netip.AddrPort
	for _, e := range s.found.Usable() {
		if e.Resolved() {
			servers = append(servers, e.Addr)
		}
	}
	var proofs []proof.Proof
	for _, svc := range s.found.ServiceAddrs() {
		proofs = append(proofs, pr.ProveDirectly(ctx, svc, servers))
	}
	return proofs
}
