package kubeproxy

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Answer is what a look at one place gave.
type Answer string

// The three answers. "No" is said only after a full look: a refusal for lack
// of rights is Unknown.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// State sums up a Presence.
type State string

const (
	Absent   State = "absent"    // no process, no rules, and everything could be looked at
	Running  State = "running"   // a process of its unit or pod keeps the rules current, or is about to write some
	LeftOver State = "left-over" // rules which no process keeps current any more
	Unclear  State = "unknown"   // the evidence says where the look was refused
)

// The places that are looked at, as Evidence.Source names them.
const (
	SourceProcess = "process"
	SourceHealthz = "healthz"
	SourceDevice  = "kube-ipvs0"
	SourceIPVS    = "ipvs"

	// These are followed by a blank and the family, ip or ip6.
	SourceNftables = "nftables"
	SourceNft      = "iptables-nft"
	SourceLegacy   = "iptables-legacy"
)

// Presence is what Detect found.
type Presence struct {
	State     State      `json:"state"`
	Running   Answer     `json:"running"`             // does a process of kube-proxy's run
	Rules     Answer     `json:"rules"`               // are there rules of kube-proxy's
	Processes []Process  `json:"processes,omitempty"` // those that are kube-proxy or have it inside
	Evidence  []Evidence `json:"evidence"`            // one for each place, in a fixed order

	frontends frontends
}

// Evidence is what one place gave.
type Evidence struct {
	Source string `json:"source"` // where: one of the Source constants
	Found  Answer `json:"found"`
	Detail string `json:"detail"` // what was found, or why it could not be looked at
}

// frontends are the TCP addresses that rules serve, out of those that are asked for.
type frontends struct {
	all    bool // every address is asked for
	asked  []netip.AddrPort
	served map[netip.AddrPort]bool
	// maybe are addresses whose ports couldn't be read.
	maybe map[netip.Addr]bool
	// incomplete4 and incomplete6 say that rules of that family may exist that
	// couldn't be read, or were not understood.
	incomplete4, incomplete6 bool
}

func newFrontends(all bool, asked []netip.AddrPort) frontends {
	f := frontends{all: all, served: make(map[netip.AddrPort]bool), maybe: make(map[netip.Addr]bool)}
	for _, a := range asked {
		f.asked = append(f.asked, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	return f
}

// of yields the addresses of a family that are asked for one by one.
func (f *frontends) of(fam family) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		for _, a := range f.asked {
			if a.Addr().BitLen() == 8*fam.addrLen && !yield(a) {
				return
			}
		}
	}
}

// wants reports whether any address of a family is asked for.
func (f *frontends) wants(fam family) bool {
	for range f.of(fam) {
		return true
	}
	return f.all
}

// add notes an address that rules serve, if it is asked for.
func (f *frontends) add(a netip.AddrPort) {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if f.all || slices.Contains(f.asked, a) {
		f.served[a] = true
	}
}

// merge adds what another look has seen.
func (f *frontends) merge(other frontends) {
	maps.Copy(f.served, other.served)
	maps.Copy(f.maybe, other.maybe)
	f.incomplete4 = f.incomplete4 || other.incomplete4
	f.incomplete6 = f.incomplete6 || other.incomplete6
}

func (f *frontends) markIncomplete(fam family) {
	if fam == ip6 {
		f.incomplete6 = true
	} else {
		f.incomplete4 = true
	}
}

// Serves tells whether rules of kube-proxy's lead TCP connections for addr to
// a backend. Rules do so whether or not a process keeps them current: those
// left over lead to the backends of long ago. A Service that has no endpoints
// isn't served: kube-proxy rejects it. Not sure means that some rules could
// not be read, or that Detect was not given the address; then served is the
// best guess.
func (p Presence) Serves(addr netip.AddrPort) (served, sure bool) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	switch {
	case p.frontends.served[addr]:
		return true, true
	case p.frontends.maybe[addr.Addr()]:
		return true, false
	case !p.frontends.all && !slices.Contains(p.frontends.asked, addr):
		return false, false
	}
	if addr.Addr().Is4() {
		return false, !p.frontends.incomplete4
	}
	return false, !p.frontends.incomplete6
}

// ServesAny tells whether rules of kube-proxy's surely lead to a backend of any
// Service, after a look with Config.AnyFrontend.
func (p Presence) ServesAny() bool { return len(p.frontends.served) > 0 }

// Summary is the Presence in one line.
func (p Presence) Summary() string {
	var found, unclear []string
	for _, e := range p.Evidence {
		switch {
		case !isRules(e.Source):
		case e.Found == Yes:
			found = append(found, e.Source)
		case e.Found == Unknown:
			unclear = append(unclear, e.Source)
		}
	}
	rules := "no rules"
	switch p.Rules {
	case Yes:
		rules = "rules in " + strings.Join(found, ", ")
	case Unknown:
		rules = "could not look at " + strings.Join(unclear, ", ")
	}
	switch p.State {
	case Absent:
		return "kube-proxy is not on this node"
	case Running:
		return fmt.Sprintf("kube-proxy runs (%s), %s", joinProcesses(p.Processes), rules)
	case LeftOver:
		return "kube-proxy does not run, but left " + rules
	}
	if p.Running == No {
		return "could not tell whether kube-proxy left rules: " + rules
	}
	return "could not tell whether kube-proxy runs; " + rules
}

// isRules tells whether a place holds rules, not processes.
func isRules(source string) bool {
	return source != SourceProcess && source != SourceHealthz
}

// judge draws the conclusions from the evidence.
func (p *Presence) judge() {
	p.Rules = No
	var process, healthz Answer
	for _, e := range p.Evidence {
		switch {
		case e.Source == SourceProcess:
			process = e.Found
		case e.Source == SourceHealthz:
			healthz = e.Found
		case e.Found == Yes:
			p.Rules = Yes
		case e.Found == Unknown && p.Rules == No:
			p.Rules = Unknown
		}
	}
	p.Running = process
	if process == Yes && !anyProper(p.Processes) {
		p.Running = p.embeddedRuns(healthz)
	}
	switch {
	case p.Running == Yes:
		p.State = Running
	case p.Running == Unknown || p.Rules == Unknown:
		p.State = Unclear
	case p.Rules == Yes:
		p.State = LeftOver
	default:
		p.State = Absent
	}
}

// embeddedRuns tells whether a process that may have kube-proxy inside does.
// Without rules it doesn't: kube-proxy writes some even when there is no
// Service. With rules it does, unless its health port is refused: then either
// the rules are left over from another time, or the port is elsewhere.
func (p *Presence) embeddedRuns(healthz Answer) Answer {
	switch {
	case p.Rules != Yes:
		return p.Rules
	case healthz == No:
		return Unknown
	}
	return Yes
}
