package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
	"github.com/firsthop/firsthop/natinit/proof"
)

// The steps that look at the host: kernel, bpffs, cgroup2.

func (s *stage) recorded(c mounts.Config) mounts.Config {
	if s.volatile != nil {
		c.Record = s.volatile.Record
	}
	return c
}

func (s *stage) kernelConfig() kernel.Config {
	return kernel.Config{Root: s.HostRoot, IgnoreVersion: s.IgnoreKernelVersion, Forbid: s.Forbid}
}

func (s *stage) checkKernel(ctx context.Context) (outcome, error) {
	s.onNode = sync.OnceValue(func() []sources.Finding { return sources.Files(s.HostRoot) })
	go s.onNode() // it takes some milliseconds, and the kernel's answers too
	rep, err := kernel.Check(s.kernelConfig())
	if err != nil {
		return outcome{}, err
	}
	s.features = rep.Features()
	err = rep.Err()
	switch {
	case err == nil:
		s.balancer, err = s.newBalancer(s.netnsCookie)
		if errors.Is(err, natinit.ErrNoCookie) && s.features.Link { // a program may tell, once the cgroup is known
			err = nil
		}
		return outcome{reason: rep.Sentence, warnings: rep.Degradations}, err
	case !errors.Is(err, kernel.ErrUnsupported):
		return outcome{}, &ExitError{ExitInternal, err}
	}
	return s.fallBack(ctx, err)
}

// fallBack leaves a node that isn't supported to its kube-proxy; without one
// the stage fails, loudly. Rules that serve the API service tell that it is
// there, not a process that bears its name.
func (s *stage) fallBack(ctx context.Context, cause error) (outcome, error) {
	addrs := s.likelyServices()
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: s.HostRoot, Proc: s.Proc, AnyFrontend: len(addrs) == 0}, addrs...)
	if err != nil {
		return outcome{}, fmt.Errorf("%w; whether kube-proxy is there could not be told: %s", cause, err)
	}
	served, unserved := leftTo(p, addrs)
	if served {
		return outcome{
			result: Skipped, stop: true,
			reason: fmt.Sprintf("%s; kube-proxy is on this node and stays in charge of Services, nothing is attached", cause),
		}, nil
	}
	if pods := kubeproxy.KubeletHas(s.HostRoot); s.Boot && len(pods) > 0 {
		return outcome{
			result: Skipped, stop: true,
			reason: fmt.Sprintf("%s; the kubelet, which starts later, has a pod of kube-proxy (%s): it stays in charge of Services, nothing is attached", cause, pods[0]),
		}, nil
	}
	return outcome{}, fmt.Errorf("%w; and there is nothing to fall back to: %s (%s)", cause, unserved, p.Summary())
}

// leftTo reports whether a node can be left to its kube-proxy: whether rules
// serve the API service, else why not. Where its address isn't known, one that
// rules serve has to do: each of kube-proxy's has the API service among them.
func leftTo(p kubeproxy.Presence, addrs []netip.AddrPort) (served bool, unserved string) {
	if len(addrs) == 0 {
		return p.ServesAny(), "no rules serve any Service"
	}
	for _, a := range addrs {
		if serves, sure := p.Serves(a); !serves || !sure {
			return false, "no rules serve " + a.String()
		}
	}
	return true, ""
}

// likelyServices are the addresses of the API service as far as they are known
// without asking: those that were given, else those of the first place that has some.
func (s *stage) likelyServices() []netip.AddrPort {
	if len(s.given.Services) > 0 {
		return s.given.Services
	}
	if f := sources.Pod(s.Pod); len(f.Services) > 0 {
		return f.Services
	}
	if known, err := apiserver.Load(s.StateDir); err == nil && len(known.Services) > 0 {
		return known.Services
	}
	return nil
}

func (s *stage) ensureBPFFS(ctx context.Context) (outcome, error) {
	look := mounts.FindBPFFS
	if !s.DryRun {
		look = func(c mounts.Config) (mounts.BPFFS, error) { return mounts.EnsureBPFFS(ctx, c) }
	}
	b, err := look(s.recorded(s.ForBPFFS()))
	if err == nil && !(s.DryRun && errors.Is(b.Err(), mounts.ErrAbsent)) {
		err = b.Err()
	}
	s.bpffs = b
	if err != nil {
		return outcome{}, err
	}
	s.report.Instance.BPFFS = b.HostPath
	if !s.DryRun {
		wait, cancel := context.WithTimeout(ctx, s.LockTimeout)
		defer cancel()
		if s.tableLock, err = instance.LockTable(wait, b.Path); err != nil {
			return outcome{}, &ExitError{ExitInternal, err}
		}
	}
	out := outcome{reason: fmt.Sprintf("%s: %s", b.HostPath, b.State), changes: b.Actions, warnings: b.Warnings}
	if s.tableLock != nil && s.tableLock.Ignored != "" {
		out.warnings = append(out.warnings, fmt.Sprintf("%s holds a lock on bpffs %s, which is ignored, as the process is not root's: end it, or give the bpffs mode 0700", s.tableLock.Ignored, b.HostPath))
	}
	if s.NoHost != nil {
		out.warnings = append(out.warnings, fmt.Sprintf("the host can't be reached from here, so %s and %s are this container's own: mount the host's, or use hostPID: %s", s.RunDir, s.StateDir, s.NoHost))
	}
	if b.Path != b.HostPath {
		out.reason += ", reached through " + b.Path
	}
	return out, nil
}

func (s *stage) ensureCgroup(ctx context.Context) (outcome, error) {
	look := mounts.FindCgroup2
	if !s.DryRun {
		look = func(c mounts.Config) (mounts.Cgroup2, error) { return mounts.EnsureCgroup2(ctx, c) }
	}
	g, err := look(s.recorded(s.ForCgroup()))
	if err == nil && !(s.DryRun && errors.Is(g.Err(), mounts.ErrAbsent)) {
		err = g.Err()
	}
	s.cgroup = g
	if err != nil {
		return outcome{}, err
	}
	s.report.Instance.Cgroup, s.report.Instance.CgroupID = g.HostPath, g.ID
	unknown, err := s.completeBalancer()
	if err != nil {
		return outcome{}, err
	}
	if unknown != "" {
		g.Warnings = append(g.Warnings, unknown)
	}
	if !s.DryRun && s.scope != ScopeOff {
		// To start a child takes as long as to load the programs.
		s.connector = sync.OnceValues(func() (proof.Connector, error) {
			return Connect(ctx, g.Path, s.Binary, s.kernelConfig().IntoCgroup())
		})
		go s.connector()
	}
	reason := fmt.Sprintf("%s: %s", g.HostPath, g.How)
	return outcome{reason: reason, changes: g.Actions, warnings: g.Warnings}, nil
}
