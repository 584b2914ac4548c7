package bootstrap

import (
	"errors"
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// newBalancer is the load balancer that the settings ask for.
func (s *stage) newBalancer(cookie func() (uint64, error)) (bpf.Balancer, error) {
	b, err := natinit.NewBalancer(s.scope, s.UDP, s.features, s.OtherNetwork(), cookie)
	if err != nil {
		return b, &UsageError{Err: err}
	}
	return b, nil
}

// netnsCookie is natinit.NetnsCookie, unless that is forbidden.
func (s *stage) netnsCookie() (uint64, error) {
	if slices.Contains(s.Forbid, kernel.FeatureSONetnsCookie) {
		return 0, natinit.ErrNoCookie
	}
	return natinit.NetnsCookie()
}

// completeBalancer asks a program for the cookie of the host's network
// namespace where the kernel doesn't tell processes (Linux 5.8 to 5.13). It is
// attached for that instant only, to the cgroup of this process. Where that
// fails and the scope can do without, the warning says what is lost.
func (s *stage) completeBalancer() (warning string, err error) {
	if s.scope == ScopeOff || s.balancer.HostNetns != 0 || !s.features.NetnsCookie || s.OtherNetwork() || s.cgroup.Err() != nil {
		return "", nil
	}
	cookies := natinit.NewCookies(natinit.CookiesConfig{
		Features: s.features, NoOption: slices.Contains(s.Forbid, kernel.FeatureSONetnsCookie),
		Cgroups: func() ([]string, error) { return mounts.OwnCgroups(s.cgroup.Path) },
	})
	s.balancer, err = s.newBalancer(func() (uint64, error) {
		cookie, err := cookies.Cookie()
		if err != nil {
			warning = fmt.Sprintf("node ports are not served on loopback addresses: which network namespace is the host's is not known: %v", err)
		}
		return cookie, err
	})
	return warning, errors.Join(err, cookies.Close())
}
