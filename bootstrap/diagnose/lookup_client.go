package diagnose

import (
	"errors"
	"fmt"
	"math"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// Whose connect it would be.

// lookAtClient finds out about the client what the programs would.
func (l *looker) lookAtClient() (err error) {
	c := &l.Client
	c.InCgroup, c.PID, c.Host = true, l.req.PID, l.req.PID == 0
	if l.hostIsKnown() {
		c.Netns = l.settings.HostNetns
	}
	features, err := l.features()
	if err != nil {
		return err
	}
	l.knows = features.NetnsCookie
	if l.req.PID != 0 {
		in, sure, err := mounts.ProcessIn(l.cgroup.Path, l.req.PID)
		if err != nil {
			return fmt.Errorf("find the cgroup of process %d: %w", l.req.PID, err)
		}
		c.InCgroup = in || !sure
		c.Netns, err = netnsCookieOf(l.Places, l.req.PID, l.cgroup.Path, features, l.req.Forbid)
		switch {
		case errors.Is(err, natinit.ErrNoCookie):
			c.Unknown = err.Error()
		case err != nil:
			return err
		}
		c.Host, c.HostUnknown = l.knownAsHosts(), c.Unknown == "" && !l.hostIsKnown()
	}
	if m := l.maps.Map(bpf.MapWorkload); m != nil {
		var w bpf.Workload
		if err := m.Lookup(c.Netns, &w); err == nil {
			c.OptedOut = w.Flags&bpf.WorkloadOptedOut != 0 && l.optOutIsLookedFor()
			addr := w.Addr6
			if l.key.Addr.Addr().Is4() {
				addr = w.Addr4
			}
			if addr != (bpf.Address{}) {
				c.Addr = addr.Addr()
			}
		}
	}
	return nil
}

func (l *looker) optOutIsLookedFor() bool {
	m := l.maps.Map(bpf.MapControl)
	if m == nil {
		return false
	}
	var control bpf.Control
	return m.Lookup(uint32(0), &control) == nil && control&bpf.ControlOptOut != 0
}

// features are what this kernel has. Where programs don't know network
// namespaces (Linux 5.7), all sockets are of the same one to them.
func (l *looker) features() (bpf.Features, error) {
	report, err := kernel.Check(kernel.Config{Root: l.HostRoot, Forbid: l.req.Forbid})
	if err != nil {
		return bpf.Features{}, &bootstrap.UsageError{Err: err}
	}
	return report.Features(), nil
}

// hostIsKnown reports whether the programs know which namespace is the host's.
func (l *looker) hostIsKnown() bool {
	return l.settings.HostNetns != math.MaxUint64 && l.settings.HostNetns != 0
}

// knownAsHosts reports whether the programs take the client for one in the
// host's network namespace.
func (l *looker) knownAsHosts() bool {
	return l.hostIsKnown() && l.Client.Netns == l.settings.HostNetns
}

// onLoopback reports whether what was found is a node port on a loopback address.
func (l *looker) onLoopback() bool {
	v := l.verdict
	return v.Kind != nat.NotOurs && v.Frontend != l.key && v.Flags&bpf.FrontendVIP == 0 && !v.Frontend.AtNodes()
}

// unlessKnown is the rest of a sentence about what is for the host alone.
func (l *looker) unlessKnown() string {
	if l.hostIsKnown() {
		return ""
	}
	return ", and the programs don't know which that is"
}

// undecided says what the decision hangs on that can't be told; empty: nothing.
func (l *looker) undecided() string {
	v := l.verdict
	if l.Client.Unknown == "" || !l.knows || !l.attached || v.Kind == nat.NotOurs {
		return ""
	}
	var hangs string
	switch {
	case l.onLoopback() && l.hostIsKnown():
		hangs = "node ports serve loopback addresses in the host's network namespace only"
	case l.Scope == bootstrap.ScopeHost:
		hangs = "only the host's network namespace is served (--scope host)"
	case l.optOutIsLookedFor():
		hangs = "workloads can opt out"
	case v.Flags&bpf.FrontendSourceRange != 0:
		hangs = "source ranges judge the client's network namespace"
	default:
		return ""
	}
	return fmt.Sprintf("%s, and which one process %d is in can't be told: %s", hangs, l.req.PID, l.Client.Unknown)
}
