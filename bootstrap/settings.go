package bootstrap

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/proof"
)

// Scope is whose sockets the load balancer serves.
type Scope = natinit.Scope

// The scopes.
const (
	ScopeAll  = natinit.ScopeAll
	ScopeHost = natinit.ScopeHost
	ScopeOff  = natinit.ScopeOff
)

// Persist is what is installed for the next boot.
type Persist string

// The choices.
const (
	PersistAuto Persist = "auto" // the addresses, and a boot unit where the host can have one
	PersistOff  Persist = "off"  // nothing
)

// Shared are the settings that the init stage and the runtime must have alike.
type Shared struct {
	mounts.Dirs
	Services  []discover.Given // Service addresses, the strongest first; see apiserver.ParseServices
	Endpoints []discover.Given // API server addresses; see apiserver.ParseEndpoints
	Scope     string
	Forbid    []string // kernel features to be treated as absent
}

// Parse understands the settings, or says which can't be used: what init refuses,
// the runtime does, too. Its errors are *UsageError.
func (c Shared) Parse() (discover.Explicit, Scope, error) {
	given, err := ParseAddresses(c.Services, c.Endpoints)
	scope, serr := natinit.ParseScope(c.Scope)
	if serr != nil {
		serr = fmt.Errorf("--scope %w", serr)
	}
	if err := errors.Join(err, serr, CheckFeatures(c.Forbid), c.Dirs.Validate()); err != nil {
		return given, scope, &UsageError{Err: err}
	}
	return given, scope, nil
}

// CheckFeatures refuses names that no feature of the kernel has.
func CheckFeatures(forbid []string) error {
	if err := (kernel.Config{Forbid: forbid}).Validate(); err != nil {
		return fmt.Errorf("--forbid-feature: %w", err)
	}
	return nil
}

// Config is everything that the init stage is told. Texts are parsed by its
// first step, so that the report has their errors too.
type Config struct {
	Shared
	Version string
	Binary  string // path of the running program, for the proof's child and for the host's copy

	Extra   []string               // further Services, see ParseExtra
	Kubeadm string                 // a file for kubeadm's --config, before kubeadm has run
	Pod     sources.PodEnvironment // what the kubelet gave this container
	Prove   string                 // a proof.Strength
	Persist string
	UDP     bool
	Boot    bool      // run by the boot unit: prove translated, warn below answered
	Sizes   bpf.Sizes // judged by CheckCapacity

	IgnoreKernelVersion bool
	DryRun              bool

	Timeout     time.Duration // for finding and probing addresses, and again for the proof
	LockTimeout time.Duration
	Log         *slog.Logger
}

// settings are a Config that was understood.
type settings struct {
	given   discover.Explicit
	extra   []ExtraService
	prove   proof.Strength
	scope   Scope
	persist Persist
}

// parse understands a Config or says which value can't be used. All its errors
// are *UsageError.
func (c Config) parse() (settings, error) {
	var s settings
	given, scope, err := c.Shared.Parse()
	s.given, s.scope = given, scope
	kubeadm, kerr := c.KubeadmFile()
	s.given.Kubeadm = kubeadm
	err = errors.Join(err, kerr,
		choose(&s.prove, c.Prove, "--prove", proof.Auto, proof.Translated, proof.Answered, proof.Verified, proof.Ready),
		choose(&s.persist, c.Persist, "--persist", PersistAuto, PersistOff),
	)
	for _, text := range c.Extra {
		extra, e := ParseExtra(text)
		err = errors.Join(err, e)
		s.extra = append(s.extra, extra)
	}
	if err == nil {
		err = checkExtra(s.extra, s.given.Services, s.given.Endpoints)
	}
	if err != nil {
		return s, &UsageError{Err: err}
	}
	return s, nil
}

// Validate says which settings can't be used. Its errors are *UsageError.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

// ParseAddresses understands the addresses that were given to init or run, or
// says what is wrong with them: what one of both refuses the other does, too.
func ParseAddresses(services, endpoints []discover.Given) (discover.Explicit, error) {
	e, err := discover.ParseExplicit(services, endpoints)
	if err != nil {
		return e, err
	}
	if err := checkPorts(e.Services, e.Endpoints); err != nil {
		services, endpoints := e.By()
		return e, errors.New(strings.NewReplacer(apiserver.VarServices, services, apiserver.VarEndpoints, endpoints).Replace(err.Error()))
	}
	return e, nil
}

// KubeadmFile reads the file for kubeadm; nil if none was given. At boot it need
// not be there any more: what it said has been saved.
func (c Config) KubeadmFile() (*sources.Finding, error) {
	if c.Kubeadm == "" {
		return nil, nil
	}
	f, err := sources.KubeadmFile(c.Dirs.Places().HostRoot, c.Kubeadm)
	if err != nil {
		if !c.Boot {
			return nil, fmt.Errorf("--kubeadm-config %w", err)
		}
		f.Notes = append(f.Notes, err.Error())
	}
	return &f, nil
}

// checkPorts refuses what can't be told apart: with two Service ports and two
// endpoint ports in a family, nobody knows which belongs to which.
func checkPorts(services []netip.AddrPort, endpoints []apiserver.Endpoint) error {
	for _, is4 := range []bool{true, false} {
		var in, out []uint16
		for _, s := range services {
			if s.Addr().Is4() == is4 {
				in = append(in, s.Port())
			}
		}
		for _, e := range endpoints {
			if !e.Resolved() || e.Addr.Addr().Is4() == is4 {
				out = append(out, e.Addr.Port())
			}
		}
		slices.Sort(in)
		slices.Sort(out)
		in, out = slices.Compact(in), slices.Compact(out)
		if len(in) > 1 && len(out) > 1 {
			return fmt.Errorf("%s has ports %v and %s has ports %v: which endpoint port belongs to which Service port can't be told; give one Service port",
				apiserver.VarServices, in, apiserver.VarEndpoints, out)
		}
	}
	return nil
}

func choose[T ~string](to *T, text, flag string, choices ...T) error {
	var words []string
	for _, c := range choices {
		if text == string(c) {
			*to = c
			return nil
		}
		words = append(words, string(c))
	}
	return fmt.Errorf("%s %q: want %s", flag, text, strings.Join(words, ", "))
}

// Map sizes are bounded so that a slip of a digit doesn't take a node's memory.
const (
	minEntries = 1024
	maxEntries = bpf.MaxEntries
)

// CheckCapacity judges a number of entries that a flag asks for; 0 stands for the
// default.
func CheckCapacity(flag string, n uint64) error {
	if n != 0 && (n < minEntries || n > maxEntries) {
		return fmt.Errorf("%s %d: want %d to %d", flag, n, minEntries, maxEntries)
	}
	return nil
}
