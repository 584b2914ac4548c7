package diagnose

import (
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// lookUpOutside says what the packet path would do with the packets of a client
// outside the cluster that come to this node.
func (l *looker) lookUpOutside(rt RuntimeView) error {
	l.Client = LookupClient{Outside: true, Addr: l.req.Outside}
	l.verdict = l.state.LookupOutside(l.req.Outside, l.key)
	if err := l.describe(rt); err != nil {
		return err
	}
	l.decideOutside()
	return nil
}

func (l *looker) decideOutside() {
	v := l.verdict
	l.Result, l.Backends = v.Kind, append(l.Backends, v.Backends...)
	switch {
	case v.Kind == nat.NotOurs:
		l.Result = LeftAlone
		if _, inside := l.state.Frontends[l.key]; inside {
			l.because("this frontend is for clients inside the cluster: the packet goes on as it came")
		} else {
			l.because("no entry of the table is about it: the packet goes on as it came")
		}
	case v.Flags&bpf.FrontendVIP != 0:
		l.because("the address is a Service's, and this port of it is not served to clients outside")
	case v.NotInRanges:
		l.because("the client's address (%s) is in none of the source ranges", l.req.Outside)
	case v.Kind == nat.Dropped:
		l.because("there are backends, but none on this node, and this frontend leads clients outside to none elsewhere")
	case v.Kind == nat.Refused:
		l.because("the Service has no backend")
	default:
		l.chosenOutside()
	}
}

// chosenOutside says how a backend is chosen.
func (l *looker) chosenOutside() {
	v := l.verdict
	if len(v.Backends) == 1 {
		l.because("it is the only backend")
	} else {
		l.because("one of %d backends", len(v.Backends))
	}
	// A policy that ended leaves the flag, as in decide.
	if v.Flags&bpf.FrontendExternalLocal != 0 && l.differsLocally(v.Index) {
		l.because("external-local: only backends for traffic that stays on this node are chosen among")
	}
	if v.Flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0 {
		l.because("the source ranges allow %s", l.req.Outside)
	}
	if v.Affinity > 0 {
		l.because("affinity: a client keeps for %d s what it gets", int(v.Affinity/time.Second))
	}
}

// differsLocally reports whether a service's state for the Local policy is not its other one.
func (l *looker) differsLocally(index uint32) bool {
	states := l.state.ServiceStates
	return states[bpf.ServiceStateAt(index, true)] != states[bpf.ServiceStateAt(index, false)]
}
