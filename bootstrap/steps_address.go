package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/units"
)

// The steps about addresses: discover them, and persist them for the next boot.

func (s *stage) discover(ctx context.Context) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	s.openDirect()
	found, err := discover.Run(ctx, discover.Config{
		Probe:    probe.Config{Dial: s.direct.DialContext},
		Explicit: s.given,
		Root:     s.HostRoot,
		Files:    s.onNode,
		StateDir: s.StateDir,
		Pod:      s.Pod,
		Machine:  MachineAt(s.Places),
		Boot:     s.Boot,
		Log:      s.Log,
	})
	if found != nil {
		s.report.Servers = servers(found)
	}
	if err != nil && !errors.Is(err, discover.ErrNotFound) {
		return outcome{}, &ExitError{ExitInternal, err}
	}
	if err != nil {
		return outcome{}, err
	}
	s.found = found
	if err := checkExtra(s.extra, found.ServiceAddrs(), foundServers(found)); err != nil { // known only now, but the flag is at fault
		return outcome{}, &UsageError{Err: err}
	}
	if err := checkPorts(found.ServiceAddrs(), found.Usable()); err != nil {
		return outcome{}, err
	}
	out := describeFound(found)
	out.warnings = append(out.warnings, s.claimed()...)
	return out, nil
}

func foundServers(found *discover.Result) []apiserver.Endpoint {
	var out []apiserver.Endpoint
	for _, e := range found.Endpoints {
		out = append(out, e.Endpoint)
	}
	return out
}

// openDirect opens the way to API servers. Where there is no table yet, it is a plain one.
func (s *stage) openDirect() {
	if s.bpffs.Path == "" {
		return
	}
	var err error
	if s.direct, err = natinit.OpenDirect(s.pins()); err != nil {
		return // what is wrong with the table, the seed says
	}
	s.direct.Withdraw = s.tableLock != nil
}

// claimed says which addresses of API servers other Services had.
func (s *stage) claimed() []string {
	var out []string
	for _, a := range s.direct.Claims() {
		done := "it was taken out of the table"
		if !s.direct.Withdraw {
			done = "init takes it out of the table"
		}
		out = append(out, fmt.Sprintf("another Service has the API server's address %s: %s", a, done))
	}
	return out
}

// MachineAt is the host that addresses are saved for; unknown where it can't be
// reached, as this container's own files tell of its image.
func MachineAt(p mounts.Places) apiserver.Machine {
	if p.NoHost != nil {
		return apiserver.Machine{}
	}
	return apiserver.MachineOf(p.HostRoot)
}

// discoverIfKnown is for an install before the node has joined its cluster.
func (s *stage) discoverIfKnown(ctx context.Context) (outcome, error) {
	if s.image && (len(s.given.Services) == 0 || len(s.given.Endpoints) == 0) {
		return outcome{result: Skipped, reason: "an image is prepared: what the machine outside knows is not its own; give --service-ips and --endpoints to save them in it"}, nil
	}
	out, err := s.discover(ctx)
	if errors.Is(err, discover.ErrNotFound) {
		return outcome{result: Skipped, reason: "no API server address is known yet; the boot unit looks again at each boot"}, nil
	}
	return out, err
}

func servers(found *discover.Result) []Server {
	used := map[apiserver.Endpoint]bool{}
	for _, e := range found.Usable() {
		used[e] = true
	}
	var out []Server
	for _, e := range found.Endpoints {
		srv := Server{Endpoint: e.Endpoint, State: e.State.String(), Millis: Millis(e.Latency), Reason: e.Detail, Used: used[e.Endpoint]}
		for _, src := range e.Sources {
			srv.Sources = append(srv.Sources, string(src))
		}
		out = append(out, srv)
	}
	return out
}

func describeFound(found *discover.Result) outcome {
	live, sources := 0, []string{}
	for _, e := range found.Endpoints {
		if e.State == apiserver.Live {
			live++
		}
	}
	for _, src := range found.Sources {
		if src.Used {
			sources = append(sources, string(src.Source))
		}
	}
	var services []string
	for _, svc := range found.Services {
		services = append(services, svc.Addr.String())
	}
	out := outcome{reason: fmt.Sprintf("%s, %d of %d endpoints live, from %s",
		strings.Join(services, ", "), live, len(found.Endpoints), strings.Join(sources, ", "))}
	for _, e := range found.Endpoints {
		if e.State != apiserver.Live {
			out.warnings = append(out.warnings, fmt.Sprintf("%s is %s: %s", e.Endpoint, e.State, e.Detail))
		}
	}
	out.warnings = append(out.warnings, found.Notes...)
	return out
}

func (s *stage) saveAddresses() (outcome, error) {
	cfg := apiserver.SaveConfig{StateDir: s.StateDir}
	if s.DryRun {
		write, why, err := apiserver.PlanSave(cfg, s.found.Known())
		out := outcome{reason: "addresses: " + why}
		if write {
			out.changes = append(out.changes, "write "+apiserver.CachePath(s.StateDir))
		}
		return out, err
	}
	cfg.Record = func(kind instance.Kind, target, former string) error {
		return s.durable.Record(kind, s.OnHost(target), former)
	}
	wrote, err := apiserver.Save(cfg, s.found.Known())
	if err != nil {
		return outcome{}, err
	}
	if !wrote {
		return outcome{reason: "addresses are saved already"}, nil
	}
	return outcome{reason: "addresses saved", changes: []string{"wrote " + apiserver.CachePath(s.StateDir)}}, nil
}

func (s *stage) installUnits(ctx context.Context) (units.Report, error) {
	cfg := units.Config{Root: s.HostRoot, BPFFS: s.bpffs.HostPath, StateDir: s.OnHost(s.StateDir), BinarySource: s.Binary, Log: s.Log}
	cfg.Args, cfg.Offline = s.bootArgs(), s.offline()
	if s.DryRun {
		return units.PlanInstall(ctx, cfg)
	}
	cfg.Record, cfg.Owned = s.durable.Record, s.durable.Has
	return units.Install(ctx, cfg)
}

// bootArgs are the boot unit's: the settings of this run that a boot can't find
// out by itself. Addresses are not among them: they are in the saved file, and
// there they can change.
func (s *stage) bootArgs() []string {
	args := []string{"init", "--boot"}
	add := func(given bool, flag ...string) {
		if given {
			args = append(args, flag...)
		}
	}
	add(s.Dirs.StateDir != "", "--state-dir", s.OnHost(s.Dirs.StateDir))
	add(s.Dirs.RunDir != "", "--run-dir", s.OnHost(s.Dirs.RunDir))
	add(s.Sizes.Frontends != 0, "--max-frontends", fmt.Sprint(s.Sizes.Frontends))
	add(s.Sizes.Services != 0, "--max-services", fmt.Sprint(s.Sizes.Services))
	add(s.Sizes.Backends != 0, "--max-backends", fmt.Sprint(s.Sizes.Backends))
	add(s.scope != ScopeAll, "--scope", string(s.scope))
	add(!s.UDP, "--udp=false")
	add(s.IgnoreKernelVersion, "--ignore-kernel-version")
	if path, err := s.kubeadmAtBoot(); path != "" && err == nil {
		args = append(args, "--kubeadm-config", path)
	}
	for _, name := range s.Forbid {
		args = append(args, "--forbid-feature", name)
	}
	for _, extra := range s.Config.Extra {
		args = append(args, "--extra-service", extra)
	}
	return args
}

// kubeadmAtBoot gives the path by which the boot unit reads the file of
// --kubeadm-config, and why it must not. The operator may name any file once;
// what is read at each boot only root may write.
func (s *stage) kubeadmAtBoot() (string, error) {
	if s.Kubeadm == "" {
		return "", nil
	}
	abs, err := filepath.Abs(s.Kubeadm)
	if err != nil {
		return s.Kubeadm, err
	}
	path := s.OnHost(abs)
	if s.HostRoot != "" && path == abs {
		return abs, errors.New("it is a file of this container, not of the host")
	}
	return path, hostfs.FS{Root: s.HostRoot}.CheckTrusted(path)
}

func DescribeActions(actions []units.Action) []string {
	var out []string
	for _, a := range actions {
		out = append(out, string(a.Kind)+" "+a.Path)
	}
	return out
}
