package apihealth

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/instance"
)

const (
	// DefaultInterval is how often a live endpoint is asked.
	DefaultInterval = 800 * time.Millisecond
	// DefaultTimeout is how long it may take to answer. A new connection needs
	// three round trips, so endpoints up to 260 ms away can be live.
	DefaultTimeout = 800 * time.Millisecond

	// deadInterval bounds the back-off for dead endpoints, so that one is in
	// again soon after it has recovered, however long it was away.
	deadInterval = 2 * time.Second
	// resolveInterval is how often given host names are looked up while all is
	// well. Go's resolver knows no TTL; 30 s is what load balancers in the cloud use.
	resolveInterval = 30 * time.Second
	// lookInterval and maxLookInterval are how often files of the host are read
	// and names are looked up while nothing lives.
	lookInterval, maxLookInterval = 2 * time.Second, 10 * time.Second
	// filesInterval is how often files of the host are read while all is well: for
	// addresses that nothing else may take.
	filesInterval = 5 * time.Minute
	// lookTime bounds one look at what waits: names and helpers.
	lookTime = 2 * time.Second
	// settleTime is how long new endpoints may take to answer for the first
	// time before a set without them is given out: otherwise three new ones
	// would make three changes, the first of them with one address.
	settleTime = 400 * time.Millisecond
	// saveDelay is how long a change must last before it is worth saving, and
	// saveInterval the least time between two writes.
	saveDelay, saveInterval = 3 * time.Second, 15 * time.Second
	// refreshInterval is how often a save is tried while nothing changes;
	// apiserver.Save writes when a day is over.
	refreshInterval = time.Hour

	// maxFormer bounds the endpoints that are remembered because they once lived.
	maxFormer = 32
	// maxProbing bounds the endpoints without life that are asked at a time,
	// each with one socket. Live ones have up to two each and need no turn.
	maxProbing = 64
)

// Config is what a Monitor needs to know.
type Config struct {
	Log *slog.Logger

	// Explicit are endpoints given by hand, addresses or host names; used alone.
	Explicit []apiserver.Endpoint
	// Services are the addresses of the API service, which can be no endpoints
	// and without which nothing is saved. SetServices changes them.
	Services []netip.AddrPort
	// IsService reports whether an address is a Service's own, which can be no API
	// server's either, whatever file names it. nil: none is known.
	IsService func(netip.AddrPort) bool
	// Adopted is what the API service leads to already. It is the last known
	// good set until something answers, and not given out again.
	Adopted []netip.AddrPort

	// Root is the prefix of the host's paths.
	Root string
	// StateDir has the saved addresses; "" means that there are none, and none are saved.
	StateDir string
	// Kubeconfig is a path on the host that is read beside the known places; "" is none.
	Kubeconfig string
	// Pod is what a container was told by the kubelet.
	Pod sources.PodEnvironment
	// Record is called before each change of the host, see apiserver.SaveConfig.
	Record func(kind instance.Kind, target, former string) error

	// CA holds the cluster's CA certificates (PEM). If it is empty, which is
	// better, apiserver.Decide takes them from Kubeconfig, the files of the host
	// and the ServiceAccount of Pod; they are read anew when an endpoint has a
	// certificate that they did not sign: a CA may be replaced while we run. If
	// there are none either, certificates are not verified.
	CA []byte
	// Dial is the way of probes; nil is a plain one. It must end with its context.
	Dial probe.Dial
	// Resolver looks names up; nil means Go's own.
	Resolver apiserver.Resolver

	// Interval and Timeout are those of one probe; 0 means the defaults. A dead
	// endpoint is out after at most their sum.
	Interval, Timeout time.Duration

	// OnChange is called by Run with every new set, one call at a time. Until it
	// returns no other is made, while probing continues. It may call Status, but
	// nothing that waits for Run.
	OnChange func(Set)
	// OnKnown is called as OnChange is, when Run starts and with every change of what
	// is known. nil: nothing is called.
	OnKnown func(Addresses)
	// OnLost is called, each time by a goroutine of its own, with an endpoint that
	// answered and does no more, when another one lives: not one that says it is not
	// ready, nor the only one, before it is back after a long time. nil: nothing is called.
	OnLost func(netip.AddrPort)
}

// Addresses are those of API servers, whether they are asked or not. Lists are sorted.
type Addresses struct {
	// Anywhere are all hosts on which an API server is or ever was known to be.
	Anywhere []netip.Addr
	// Reserved are the addresses, with ports, that clients of this node connect to now
	// or may connect to: those that the API names, those in files of the host, given ones and the
	// saved ones until the API names others. Former ones are not among them.
	Reserved []netip.AddrPort
}

func (a Addresses) equal(o Addresses) bool {
	return slices.Equal(a.Anywhere, o.Anywhere) && slices.Equal(a.Reserved, o.Reserved)
}

// Set is where the API service shall lead to.
type Set struct {
	// V4 and V6 are in numeric order. A family that is empty has never had a
	// known address; what the table holds for it stays.
	V4, V6 []netip.AddrPort
}

func (c *Config) check() error {
	switch {
	case c.Log == nil:
		return errors.New("monitor API servers: no logger")
	case c.OnChange == nil:
		return errors.New("monitor API servers: no OnChange")
	case len(c.Explicit) > apiserver.MaxEndpoints:
		return fmt.Errorf("monitor API servers: %d endpoints given, at most %d are accepted", len(c.Explicit), apiserver.MaxEndpoints)
	case len(c.CA) > 0 && !hasCertificates(c.CA):
		return errors.New("monitor API servers: the CA has no certificate in PEM form")
	}
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	c.Resolver = apiserver.NewResolver(c.Root, c.Resolver)
	return nil
}

func hasCertificates(pem []byte) bool { return x509.NewCertPool().AppendCertsFromPEM(pem) }
