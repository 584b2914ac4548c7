package apihealth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

const (
	// dialStagger is how long an address may be silent before the next one is
	// tried beside it.
	dialStagger = 300 * time.Millisecond
	// dialTimeout bounds a dial whose context does not.
	dialTimeout = 10 * time.Second
	// maxDials bounds the addresses that one dial tries.
	maxDials = 16
	// deadPeer is when the kernel gives a connection up whose peer is silent. An
	// HTTP/2 client would need 45 seconds to notice that its watches are dead
	// (client-go: ping after 30 s, answer within 15).
	deadPeer = 10 * time.Second
)

// DialerConfig is what a Dialer needs to know.
type DialerConfig struct {
	Log *slog.Logger
	// Monitor knows the endpoints.
	Monitor *Monitor
	// Proven reports whether connections to the Service IP are known to reach
	// an API server; while they are not, endpoints are dialled first. nil means
	// that they are.
	Proven func() bool
	// Dial is the way to a Service IP; nil is a plain one that notices dead peers.
	Dial probe.Dial
	// Past lets a socket past whatever redirects connections of this node, before
	// it connects to an API server itself; it fits net.Dialer.Control. nil: nothing does. With Dial, it is not used.
	Past func(network, address string, c syscall.RawConn) error
	// Peer tells which endpoint a connection through the Service IP was led to;
	// not ok, or nil: what its socket says.
	Peer func(net.Conn) (netip.AddrPort, bool)
	// Root and Resolver are for the name of the configured server.
	Root     string
	Resolver apiserver.Resolver
}

// Dialer reaches an API server for the runtime's own client, through the
// configured address, which is the Service IP as a rule, or directly. The
// certificate is checked for the configured name either way: that of the
// Service IP is in every API server's. Its methods may be called by any
// goroutine.
type Dialer struct {
	cfg  DialerConfig
	past probe.Dial    // to API servers themselves
	turn atomic.Uint64 // for the round robin
	kept kept

	mu     sync.Mutex
	status DialerStatus
	direct bool                         // the last connection was
	left   map[netip.AddrPort]time.Time // see Leave
	log    limiter
}

// DialerStatus tells how connections came about.
type DialerStatus struct {
	// Configured were reached at the configured address, Direct at an endpoint,
	// Failed nowhere.
	Configured, Direct, Failed uint64
}

// NewDialer makes a Dialer.
func NewDialer(cfg DialerConfig) (*Dialer, error) {
	if cfg.Log == nil || cfg.Monitor == nil {
		return nil, errors.New("make a dialer for API servers: no logger, or no monitor")
	}
	past := cfg.Dial
	if cfg.Dial == nil {
		cfg.Dial, past = noticing(nil), noticing(cfg.Past)
	}
	cfg.Resolver = apiserver.NewResolver(cfg.Root, cfg.Resolver)
	return &Dialer{cfg: cfg, past: past}, nil
}

// noticing dials connections that notice dead peers.
func noticing(more func(network, address string, c syscall.RawConn) error) probe.Dial {
	return (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadPeer / 2, Interval: deadPeer / 10, Count: 5},
		Control: func(network, address string, c syscall.RawConn) error {
			if more != nil {
				if err := more(network, address, c); err != nil {
					return err
				}
			}
			return setUserTimeout(network, address, c)
		},
	}).DialContext
}

// setUserTimeout bounds how long sent data may stay without acknowledgement;
// keep-alives are not sent while there is any (tcp(7)).
func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var err error
	ctrlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	})
	return errors.Join(ctrlErr, err)
}

// Status gives the counters.
func (d *Dialer) Status() DialerStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// DialContext has the shape that rest.Config.Dial wants. It tries the address,
// then the endpoints: the live ones in turn, those that the API service leads
// to, then all that are known, those that were left at the end; then the Service IP, if it is not the address. Each is tried when the one before has
// failed or was silent for dialStagger. The first connection counts. A host name is looked up
// each time. The error is a *DialError.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	configured := route{name: address, dial: func(ctx context.Context) (net.Conn, error) {
		return d.dialConfigured(ctx, network, address)
	}}
	var direct []route
	order, leaving := d.passBy(d.cfg.Monitor.dialOrder(int(d.turn.Add(1) % (1 << 30))))
	for _, e := range order {
		to := e.Addr.String()
		if to == address || len(direct) == maxDials {
			continue
		}
		direct = append(direct, route{name: e.String(), dial: func(ctx context.Context) (net.Conn, error) {
			return d.past(ctx, network, to)
		}})
	}
	for _, a := range d.cfg.Monitor.serviceAddrs() {
		to := a.String()
		if to == address {
			continue
		}
		direct = append(direct, route{name: to, dial: func(ctx context.Context) (net.Conn, error) {
			return d.cfg.Dial(ctx, network, to)
		}})
	}
	proven := d.cfg.Proven == nil || d.cfg.Proven()
	routes := append([]route{configured}, direct...)
	if !proven || leaving || d.cfg.Monitor.dead(address) {
		routes = append(direct, configured)
	}
	conn, by, tries := race(ctx, routes)
	d.count(conn, by, address, proven, leaving, tries)
	if conn == nil {
		return nil, &DialError{Address: address, Tries: tries}
	}
	return d.keep(conn), nil
}

// dialConfigured dials the address of the configuration, or what its name
// leads to now.
func (d *Dialer) dialConfigured(ctx context.Context, network, address string) (net.Conn, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("address %q is not host:port", address)
	}
	if a, err := netip.ParseAddrPort(address); err == nil {
		return d.to(a)(ctx, network, address)
	}
	found, err := apiserver.ParseEndpoints(address)
	if err != nil {
		return nil, err
	}
	_, names := apiserver.Resolve(ctx, apiserver.ResolveConfig{Resolver: d.cfg.Resolver, Loopback: true}, found)
	var routes []route
	for _, n := range names {
		if n.Err != nil {
			return nil, n.Err
		}
		found = n.Found
	}
	for _, e := range found {
		routes = append(routes, route{name: e.Addr.String(), dial: func(ctx context.Context) (net.Conn, error) {
			return d.to(e.Addr)(ctx, network, e.Addr.String())
		}})
	}
	conn, _, tries := race(ctx, routes)
	if conn == nil {
		return nil, &DialError{Address: address, Tries: tries}
	}
	return conn, nil
}

// to is the way to an address: through the programs only to a Service IP, as no
// Service may redirect connections to an API server.
func (d *Dialer) to(a netip.AddrPort) probe.Dial {
	if d.cfg.Monitor.isService(a) {
		return d.cfg.Dial
	}
	return d.past
}

// count counts, and logs when the way is another one than before.
func (d *Dialer) count(conn net.Conn, by, address string, proven, leaving bool, tries []Try) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if conn == nil {
		d.status.Failed++
		return
	}
	direct := by != address
	if direct {
		d.status.Direct++
	} else {
		d.status.Configured++
	}
	if direct == d.direct {
		return
	}
	d.direct = direct
	if !direct {
		d.log.write(time.Now(), d.cfg.Log.Info, "API servers are reached at the configured address again", "configured", address)
		return
	}
	why := "silence"
	if len(tries) > 0 {
		why = tries[0].String()
	} else if leaving {
		why = "it led to a server whose answers are of no use"
	} else if !proven {
		why = "not proven to lead to an API server"
	}
	d.log.write(time.Now(), d.cfg.Log.Warn, "API servers are reached directly", "configured", address, "reason", why, "endpoint", by)
}

// dead reports whether an address is known to be no API server of this cluster: it
// may accept connections all the same.
func (m *Monitor) dead(address string) bool {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.targets[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())]
	return t != nil && t.state == apiserver.Dead
}

// dialOrder gives the endpoints in the order in which they are worth dialling.
func (m *Monitor) dialOrder(turn int) []apiserver.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	// The live ones, the first tier before the second; those that answer; those in use; all others.
	var groups [5][]apiserver.Endpoint
	seen := map[netip.AddrPort]bool{}
	for _, e := range m.known() {
		seen[e.Addr] = true
		rank := apiserver.RankNone
		if t := m.targets[e.Addr]; t != nil {
			rank = m.candidate(t).Rank()
		}
		g := 4
		switch {
		case rank == apiserver.RankLive && e.Preferred:
			g = 0
		case rank == apiserver.RankLive:
			g = 1
		case rank == apiserver.RankAnswering:
			g = 2
		case m.inUse(e.Addr):
			g = 3
		}
		groups[g] = append(groups[g], e.Endpoint)
	}
	for _, c := range m.current {
		for _, a := range c.Addrs {
			if e := adopted(a); !seen[a] && e.Refused(m.serviceAddr) == "" {
				groups[3] = append(groups[3], e.Endpoint)
			}
		}
	}
	var out []apiserver.Endpoint
	for _, list := range groups {
		for i := range list {
			out = append(out, list[(i+turn)%len(list)])
		}
	}
	return out
}

// Try is an address that was dialled in vain.
type Try struct {
	Address string
	Err     error
}

// DialError lists every address that was tried. It unwraps to the causes:
// client-go's reflector treats ECONNREFUSED in a way of its own.
type DialError struct {
	// Address is what was asked for.
	Address string
	Tries   []Try
}

func (e *DialError) Error() string {
	var list []string
	for _, t := range e.Tries {
		list = append(list, t.String())
	}
	if len(list) == 0 {
		return "dial " + e.Address + ": no address"
	}
	return "dial API server: " + strings.Join(list, "; ")
}

func (t Try) String() string {
	if of, ok := t.Err.(*DialError); ok { // a name with its addresses
		var list []string
		for _, t := range of.Tries {
			list = append(list, t.String())
		}
		return t.Address + " (" + strings.Join(list, ", ") + ")"
	}
	_, err := probe.Explain(t.Err)
	return t.Address + ": " + err.Error()
}

func (e *DialError) Unwrap() []error {
	var list []error
	for _, t := range e.Tries {
		list = append(list, t.Err)
	}
	return list
}

// route is one address to dial.
type route struct {
	name string
	dial func(context.Context) (net.Conn, error)
}

// race dials one after the other, the next when the one before has failed or
// was silent for dialStagger, and gives the first connection with the name of
// its route, and what failed before it. Connections that come too late are closed.
func race(ctx context.Context, routes []route) (net.Conn, string, []Try) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		conn net.Conn
		err  error
		name string
	}
	results := make(chan outcome, len(routes))
	pending := 0
	next := func() {
		if len(routes) == 0 {
			return
		}
		w := routes[0]
		routes = routes[1:]
		pending++
		go func() {
			conn, err := w.dial(ctx)
			results <- outcome{conn, err, w.name}
		}()
	}
	stagger := time.NewTicker(dialStagger)
	defer stagger.Stop()
	var tries []Try
	for next(); pending > 0; {
		select {
		case <-stagger.C:
			next()
		case o := <-results:
			pending--
			if o.err == nil && pending == 0 {
				return o.conn, o.name, tries
			}
			if o.err == nil {
				go func() { // they end with ctx
					for range pending {
						if late := <-results; late.conn != nil {
							late.conn.Close()
						}
					}
				}()
				return o.conn, o.name, tries
			}
			tries = append(tries, Try{o.name, o.err})
			if ctx.Err() == nil {
				stagger.Reset(dialStagger)
				next()
			}
		}
	}
	return nil, "", tries
}
