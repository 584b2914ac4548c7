package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/proof"
)

// retainLive refuses to lead a Service address that works to endpoints of which
// none answers. The proof would find out, but until it has, every connection
// would be refused. Who asked for no more than a translated connection expects
// servers that start later: until they do and init runs again, the backends
// that answer keep their place. The dead ones beside them would have their share
// of the connections refused.
func (s *stage) retainLive(ctx context.Context) error {
	dead := s.deadServices()
	if len(dead) == 0 {
		return nil
	}
	maps, err := bpf.OpenMaps(s.pins(), true)
	if err != nil {
		return nothingToRetain(err)
	}
	defer maps.Close()
	state, err := nat.NewKernel(maps, s.features).Read()
	if err != nil {
		return err
	}
	planner := nat.NewPlanner(state, nat.InitIndexes)
	for _, svc := range dead {
		index, found, err := planner.Owner(svc)
		if err != nil || !found || !nat.InitIndexes.Contains(index) {
			continue // new, or somebody else's, whose backends are merged
		}
		have := state.Backends(state.ServiceStates[bpf.ServiceStateAt(index, false)])
		live := s.answering(ctx, have)
		if s.settings.prove == proof.Translated && len(live) > 0 {
			s.retain(svc, live)
			continue
		}
		if len(live) > 0 {
			return &ExitError{ExitProof, fmt.Errorf("none of %s answers, while connections to %s reach %s: they are left as they are; repair the endpoints, or use --prove translated if servers start there later",
				Join(svc.Backends, ", "), joinFrontends(svc), Join(live, ", "))}
		}
	}
	return nil
}

// retain leaves a Service's address with the backends that answer.
func (s *stage) retain(svc nat.Service, live []netip.AddrPort) {
	s.retained = append(s.retained, live...)
	s.retainWarnings = append(s.retainWarnings, fmt.Sprintf("none of %s answers yet: connections to %s go on to %s; once they answer, run firsthop init again",
		Join(svc.Backends, ", "), joinFrontends(svc), Join(live, ", ")))
	for i, srv := range s.report.Servers {
		if slices.Contains(svc.Backends, srv.Endpoint.Addr) && !slices.Contains(live, srv.Endpoint.Addr) {
			s.report.Servers[i].Used = false
		}
	}
}

// nothingToKeep: where there is no table, nothing works yet; what else is wrong
// with it, the seed reports.
func nothingToRetain(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, bpf.ErrForeign) || errors.Is(err, bpf.ErrNewerLayout) {
		return nil
	}
	return err
}

// deadServices are the API services for which no endpoint answered its probe.
func (s *stage) deadServices() []nat.Service {
	live := map[netip.AddrPort]bool{}
	for _, e := range s.found.Endpoints {
		live[e.Addr] = e.State != apiserver.Dead
	}
	api := map[bpf.FrontendKey]bool{}
	for _, a := range s.found.ServiceAddrs() {
		api[bpf.FrontendKeyOf(a, bpf.TCP)] = true
	}
	return slices.DeleteFunc(s.wanted(), func(svc nat.Service) bool {
		return !api[svc.Frontends[0]] || slices.ContainsFunc(svc.Backends, func(b netip.AddrPort) bool { return live[b] })
	})
}

// answering are those of the backends that answer as an API server of this
// cluster, or accept a connection where that can't be told.
func (s *stage) answering(ctx context.Context, backends []netip.AddrPort) []netip.AddrPort {
	return LiveServers(ctx, backends, probe.Config{Strength: probe.Verified, Trust: s.found.Trust, Dial: s.direct.DialContext})
}

// LiveServers are those of the servers that pass a probe.
func LiveServers(ctx context.Context, servers []netip.AddrPort, cfg probe.Config) []netip.AddrPort {
	var endpoints []apiserver.Endpoint
	for _, b := range servers {
		endpoints = append(endpoints, apiserver.Endpoint{Addr: b})
	}
	var live []netip.AddrPort
	for _, r := range probe.Endpoints(ctx, endpoints, cfg) {
		if r.State == apiserver.Live {
			live = append(live, r.Endpoint.Addr)
		}
	}
	return live
}

func joinFrontends(svc nat.Service) string {
	var parts []string
	for _, k := range svc.Frontends {
		parts = append(parts, k.AddrPort().String())
	}
	return strings.Join(parts, ", ")
}
