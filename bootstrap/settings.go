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

// Config is everything that the init stage is told. Texts are parsed by its
// first step, so that the report has their errors too.
type Config struct {
	Dirs
	Version string
	Binary  string // path of the running program, for the proof's child and for the host's copy

	Services  []discover.Given       // Service addresses, the strongest first; see apiserver.ParseServices
	Endpoints []discover.Given       // API server addresses; see apiserver.ParseEndpoints
	Extra     []string               // further Services, see ParseExtra
	Kubeadm   string                 // a file for kubeadm's --config, before kubeadm has run
	Pod       sources.PodEnvironment // what the kubelet gave this container
	Prove     string                 // a Strength
	Scope     string
	Persist   string
	UDP       bool
	Boot      bool // run by the boot unit: prove translated, warn below answered
	Forbid    []string
	Sizes     bpf.Sizes

	IgnoreKernelVersion bool
	DryRun              bool

	Timeout     time.Duration // for finding, probing and proving together
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
	err := errors.Join(
		c.parseAddresses(&s),
		choose(&s.prove, c.Prove, "--prove", proof.Auto, proof.Translated, proof.Answered, proof.Verified, proof.Ready),
		choose(&s.scope, c.Scope, "--scope", ScopeAll, ScopeHost, ScopeOff),
		choose(&s.persist, c.Persist, "--persist", PersistAuto, PersistOff),
		kernel.Config{Forbid: c.Forbid}.Validate(),
		c.Dirs.Validate(),
		c.checkSizes(),
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

func (c Config) parseAddresses(s *settings) error {
	given, err := ParseAddresses(c.Services, c.Endpoints)
	kubeadm, kerr := c.KubeadmFile()
	given.Kubeadm = kubeadm
	s.given = given
	return errors.Join(err, kerr)
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

// CheckRoom judges a number of entries that a flag asks for; 0 stands for the
// default.
func CheckRoom(flag string, n uint64) error {
	if n != 0 && (n < minEntries || n > maxEntries) {
		return fmt.Errorf("%s %d: want %d to %d", flag, n, minEntries, maxEntries)
	}
	return nil
}

func (c Config) checkSizes() error {
	return errors.Join(
		CheckRoom("--max-frontends", uint64(c.Sizes.Frontends)),
		CheckRoom("--max-services", uint64(c.Sizes.Services)),
		CheckRoom("--max-backends", uint64(c.Sizes.Backends)),
	)
}
