package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
)

// The steps that change where traffic goes: seed and attach.

func (s *stage) pins() bpf.Pins { return bpf.PinsBelow(s.bpffs.Path) }

func (s *stage) seedConfig(ctx context.Context) natinit.SeedConfig {
	return natinit.SeedConfig{
		Pins:     s.pins(),
		Sizes:    s.Sizes,
		Features: s.features,
		Services: s.wanted(),
		Prune:    len(s.given.Services) > 0, // else a source that knows less would cut somebody off
		Merge: func(svc nat.Service, have []netip.AddrPort) []netip.AddrPort {
			return s.mergeBackends(ctx, have, svc.Backends)
		},
	}
}

// wanted are the Services that the table is to hold: the API service, one
// entry a family, and the extra ones.
func (s *stage) wanted() []nat.Service {
	var out []nat.Service
	for _, is4 := range []bool{true, false} {
		svc := nat.Service{Name: "default/kubernetes (IPv6)"}
		if is4 {
			svc.Name = "default/kubernetes (IPv4)"
		}
		for _, a := range s.found.ServiceAddrs() {
			if a.Addr().Is4() != is4 {
				continue
			}
			svc.Frontends = append(svc.Frontends, bpf.FrontendKeyOf(a, bpf.TCP))
			if !slices.Contains(svc.VIPs, a.Addr()) && !s.hasOtherUses(a.Addr()) {
				svc.VIPs = append(svc.VIPs, a.Addr())
			}
		}
		for _, e := range s.found.Usable() {
			if e.Resolved() && e.Addr.Addr().Is4() == is4 {
				svc.Backends = append(svc.Backends, e.Addr)
			}
		}
		if kept := slices.DeleteFunc(slices.Clone(s.retained), func(a netip.AddrPort) bool { return a.Addr().Is4() != is4 }); len(kept) > 0 {
			svc.Backends = kept
		}
		if len(svc.Frontends) > 0 && len(svc.Backends) > 0 {
			out = append(out, svc)
		}
	}
	for _, e := range s.extra {
		out = append(out, e.service())
	}
	return out
}

// hasOtherUses reports whether a Service address is more than that: one of this
// host's, an API server's (kube-vip, an external load balancer), or another
// Service's. Its other ports must then not be refused as those of a VIP are.
func (s *stage) hasOtherUses(a netip.Addr) bool {
	server := func(e discover.Endpoint) bool { return e.Addr.Addr() == a }
	extra := func(e ExtraService) bool {
		return e.Frontend.Addr() == a || slices.ContainsFunc(e.Backends, func(b netip.AddrPort) bool { return b.Addr() == a })
	}
	kept := func(b netip.AddrPort) bool { return b.Addr() == a }
	return isLocal(a) || slices.ContainsFunc(s.found.Endpoints, server) || slices.ContainsFunc(s.extra, extra) || slices.ContainsFunc(s.retained, kept)
}

// isLocal reports whether an address is one of this host's.
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // when in doubt, refuse nothing
	}
	for _, ia := range addrs {
		if p, err := netip.ParsePrefix(ia.String()); err == nil && p.Addr() == a {
			return true
		}
	}
	return false
}

// mergeBackends decides about an API service that the runtime wrote. All of
// its backends answer: it is left alone (nil). Otherwise the live ones of both
// lists, or everything if none is.
func (s *stage) mergeBackends(ctx context.Context, have, given []netip.AddrPort) []netip.AddrPort {
	all := slices.Clone(have)
	for _, g := range given {
		if !slices.Contains(all, g) {
			all = append(all, g)
		}
	}
	live := s.answering(ctx, all)
	good := len(have) > 0 && !slices.ContainsFunc(have, func(a netip.AddrPort) bool { return !slices.Contains(live, a) })
	switch {
	case good:
		return nil
	case len(live) == 0:
		return all
	}
	return live
}

func (s *stage) seed(ctx context.Context) (outcome, error) {
	if s.DryRun {
		return s.planSeed(ctx)
	}
	if err := s.retainLive(ctx); err != nil {
		return outcome{}, err
	}
	if err := s.recordPending(); err != nil {
		return outcome{}, err
	}
	seeded, err := natinit.Seed(s.seedConfig(ctx))
	if err != nil {
		return outcome{}, err
	}
	s.seeded = seeded
	s.report.Services = seeded.Services
	out := describeSeed(seeded.Services)
	out.warnings = append(out.warnings, s.retainWarnings...)
	for _, name := range seeded.Maps.Created {
		out.changes = append(out.changes, "map "+s.pins().Map(name)+" created")
	}
	if paths, err := bpf.OtherLayouts(s.pins()); err == nil && len(paths) > 0 {
		out.warnings = append(out.warnings, fmt.Sprintf("pins of another layout are left alone: %s", strings.Join(paths, ", ")))
	}
	return out, nil
}

func (s *stage) planSeed(ctx context.Context) (outcome, error) {
	if err := bpf.CheckMaps(s.pins()); err != nil {
		return outcome{}, err
	}
	if err := s.retainLive(ctx); err != nil {
		return outcome{}, err
	}
	state := nat.NewState(1 << 16)
	maps, err := bpf.OpenMaps(s.pins(), true)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return outcome{}, err
	default:
		defer maps.Close()
		if state, err = nat.NewKernel(maps, s.features).Read(); err != nil {
			return outcome{}, err
		}
	}
	_, services, err := natinit.PlanSeed(state, s.seedConfig(ctx))
	if err != nil {
		return outcome{}, err
	}
	s.report.Services = services
	out := describeSeed(services)
	out.warnings = append(out.warnings, s.retainWarnings...)
	if maps == nil {
		out.changes = append(out.changes, "create the maps below "+s.pins().Maps())
	}
	return out, nil
}

func describeSeed(services []natinit.SeededService) outcome {
	var out outcome
	var parts []string
	for _, svc := range services {
		parts = append(parts, fmt.Sprintf("%s -> %s (%s)", strings.Join(svc.Frontends, " "), Join(svc.Backends, ", "), svc.Change))
		switch svc.Change {
		case attach.Added:
			out.changes = append(out.changes, fmt.Sprintf("%s added at index %d", svc.Name, svc.Index))
		case attach.Removed:
			out.changes = append(out.changes, fmt.Sprintf("%s removed: %s", strings.Join(svc.Frontends, " "), svc.Name))
			continue
		case attach.Changed:
			out.changes = append(out.changes, fmt.Sprintf("%s: backends %s instead of %s", svc.Name, Join(svc.Backends, ", "), Join(svc.Former, ", ")))
		}
		if svc.Owner == natinit.OwnerRuntime && svc.Change == attach.Kept {
			out.warnings = append(out.warnings, svc.Name+" was written by the runtime and answers: left alone")
		}
	}
	out.reason = strings.Join(parts, "; ")
	return out
}

// Join writes a list of what has a text.
func Join[T fmt.Stringer](list []T, separator string) string {
	return strings.Join(Texts(list), separator)
}

// Texts are the texts of a list.
func Texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

func (s *stage) attach(ctx context.Context) (outcome, error) {
	if s.scope != ScopeAll {
		if err := s.otherServes(ctx); err != nil {
			return outcome{}, err
		}
	}
	if s.DryRun {
		return s.planAttach()
	}
	err := s.seeded.Recover(s.attachConfig(s.seeded.Maps), s.programs(s.seeded.Maps))
	if err != nil {
		return outcome{}, err
	}
	if s.attached, err = attach.Attach(s.attachConfig(s.seeded.Maps)); err != nil {
		return outcome{}, err
	}
	s.report.Hooks = s.attached.Hooks
	if s.scope == ScopeOff {
		return outcome{result: Skipped, reason: "--scope off: nothing is attached, another serves the Service addresses"}, nil
	}
	out := outcome{reason: fmt.Sprintf("%d programs at %s by %s", len(s.attached.Hooks), s.cgroup.HostPath, s.attached.Hooks[0].By)}
	if s.seeded.Recovered {
		out.warnings = append(out.warnings, "a growth of the maps of sockets had been killed: it was ended, and the programs that this took stay attached even if the proof fails")
	}
	if s.seeded.Left != nil {
		out.warnings = append(out.warnings, "something of that growth was left behind: "+s.seeded.Left.Error())
	}
	for _, h := range s.attached.Hooks {
		if h.Change != attach.Kept {
			out.changes = append(out.changes, fmt.Sprintf("%s: program %d %s", h.Hook, h.Program, h.Change))
		}
		if h.Note != "" {
			out.warnings = append(out.warnings, h.Hook+": "+h.Note)
		}
	}
	return out, nil
}

func (s *stage) attachConfig(maps *bpf.Maps) attach.Config {
	return attach.Config{
		Pins: s.pins(), Target: attach.Cgroup{Path: s.cgroup.Path, ID: s.cgroup.ID, Links: s.features.Link},
		Programs: s.programs(maps),
		Journal:  s.volatile, Links: s.kernelConfig().Links(), Proc: s.Proc,
	}
}

func (s *stage) programs(maps *bpf.Maps) attach.Balancer {
	return attach.Balancer{Balancer: s.balancer, Maps: maps, Features: s.features}
}

// otherServes refuses a scope that leaves Service addresses without anybody
// who serves them.
func (s *stage) otherServes(ctx context.Context) error {
	addrs := s.found.ServiceAddrs()
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: s.HostRoot, Proc: s.Proc}, addrs...)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if serves, _ := p.Serves(a); !serves {
			return fmt.Errorf("--scope %s: nothing else on this node serves %s (%s), so connections to it would be cut off: use --scope all, or start what is to serve it first", s.scope, a, p.Summary())
		}
	}
	return nil
}

func (s *stage) planAttach() (outcome, error) {
	hooks := s.balancer.Hooks(s.features)
	out := outcome{reason: fmt.Sprintf("%d programs at %s", len(hooks), s.cgroup.HostPath)}
	if s.cgroup.Err() != nil { // to be mounted first
		out.changes = append(out.changes, "attach all programs")
		return out, nil
	}
	if err := attach.CheckAttach(s.attachConfig(nil)); err != nil {
		return out, err
	}
	maps, err := bpf.OpenMaps(s.pins(), true)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return out, err
	}
	if maps != nil {
		defer maps.Close()
	}
	plan, err := attach.Plan(s.attachConfig(maps))
	for _, h := range plan {
		switch h.Change {
		case attach.Added:
			out.changes = append(out.changes, "attach "+h.Hook)
		case attach.Changed:
			out.changes = append(out.changes, fmt.Sprintf("exchange program %d of %s", h.Program, h.Hook))
		case attach.Removed:
			out.changes = append(out.changes, fmt.Sprintf("detach program %d of %s", h.Program, h.Hook))
		}
	}
	return out, err
}
