package natinit

import (
	"errors"
	"fmt"

	"github.com/firsthop/firsthop/bpf"
)

// Scope is whose sockets the load balancer serves.
type Scope string

// The scopes.
const (
	ScopeAll  Scope = "all"  // every process on the node
	ScopeHost Scope = "host" // only those in the host's network namespace (Linux 5.7)
	ScopeOff  Scope = "off"  // nobody: another serves the Service addresses
)

// ParseScope reads a scope. The error names the value.
func ParseScope(s string) (Scope, error) {
	switch scope := Scope(s); scope {
	case ScopeAll, ScopeHost, ScopeOff:
		return scope, nil
	}
	return "", fmt.Errorf("%q: want %s, %s, %s", s, ScopeAll, ScopeHost, ScopeOff)
}

// NewBalancer is the load balancer of a scope. elsewhere says that this process
// isn't in the host's network namespace, whose cookie it then can't tell. cookie
// tells it otherwise (NetnsCookie, Cookies.Cookie); its error is returned if the
// scope needs it.
func NewBalancer(scope Scope, udp bool, f bpf.Features, elsewhere bool, cookie func() (uint64, error)) (bpf.Balancer, error) {
	b := bpf.Balancer{UDP: udp, Off: scope == ScopeOff, HostOnly: scope == ScopeHost}
	var err error
	switch {
	case !f.NetnsCookie:
		err = errors.New("this kernel has no network namespace cookies for programs (Linux 5.7), so the host's sockets can't be told from a pod's")
	case elsewhere:
		err = errors.New("this process isn't in the host's network namespace: run it there (hostNetwork)")
	default:
		b.HostNetns, err = cookie()
	}
	if err != nil && b.HostOnly {
		return b, fmt.Errorf("--scope host: %w", err)
	}
	return b, nil // where the host's namespace isn't known, node ports don't serve loopback addresses
}
