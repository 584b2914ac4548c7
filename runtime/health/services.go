package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/limit"
	"github.com/firsthop/firsthop/runtime/services"
)

// ServicesConfig is what Services need.
type ServicesConfig struct {
	// Healthy reports whether the proxy keeps up (Proxy.Healthy).
	Healthy func() bool
	Log     *slog.Logger
	// Holder and Retry: see ServerConfig.
	Holder func(port uint16) string
	Retry  time.Duration
	// MaxListeners is how many ports are listened on at most, each family and address by itself; 0: a quarter of the
	// descriptors that the process may have.
	MaxListeners int
}

// allConnections is how many connections all healthCheckNodePorts have at once.
const allConnections = 256

// ErrTooMany says that a port is not listened on, so as to leave descriptors to others.
var ErrTooMany = errors.New("too many healthCheckNodePorts for the file descriptors of this process: raise its limit (LimitNOFILE=)")

// Services answer at the healthCheckNodePorts of Services: 200 where the Service has ready endpoints on this node and the
// proxy keeps up, else 503. A question over IPv4 is answered from the Service's IPv4 endpoints, one over IPv6 from the
// others, and not at all where it has no such family.
//
// A port that another program has is taken when it gets free; of several Services with the same port, the one that came
// first has it, and the others are Unserved until it goes. Methods may be called by any goroutine.
type Services struct {
	cfg    ServicesConfig
	noIPv6 func()        // logs it once
	budget *limit.Budget // of all of them: who may create Services may create any number

	mu      sync.Mutex
	closed  bool
	addrs   []netip.Addr // nil: all
	wanted  map[types.NamespacedName]services.Health
	ports   map[uint16][]types.NamespacedName // who wants a port; the first one has it
	serving map[types.NamespacedName]*checks
}

// checks are the listeners of one Service.
type checks struct {
	name      types.NamespacedName
	port      uint16
	health    atomic.Pointer[services.Health]
	listeners map[listenAt]*listener
}

// listenAt is where: an address, or all of a family.
type listenAt struct {
	addr netip.Addr
	ipv6 bool
}

// listener is nil where there are too many.
type listener struct {
	*Server
	stop func() // returns when the port is free
}

// Unserved is a healthCheckNodePort that is not served.
type Unserved struct {
	Service types.NamespacedName
	Port    uint16
	Err     string
}

// NewServices makes Services that listen nowhere yet.
func NewServices(cfg ServicesConfig) *Services {
	if cfg.MaxListeners == 0 {
		cfg.MaxListeners = limit.Descriptors() / 4
	}
	return &Services{
		cfg: cfg,
		noIPv6: sync.OnceFunc(func() {
			cfg.Log.Warn("this host has no IPv6: healthCheckNodePorts are served over IPv4 only")
		}),
		budget:  limit.NewBudget(allConnections),
		wanted:  map[types.NamespacedName]services.Health{},
		ports:   map[uint16][]types.NamespacedName{},
		serving: map[types.NamespacedName]*checks{},
	}
}

// SetAddrs says on which of the host's addresses the ports are served, as with node ports. nil: on all, those that are
// yet to come too; empty: on none.
func (s *Services) SetAddrs(addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (addrs == nil) == (s.addrs == nil) && slices.Equal(addrs, s.addrs) {
		return
	}
	s.addrs = slices.Clone(addrs)
	for _, c := range s.serving {
		s.listen(c)
	}
}

// Set takes what a Service's healthCheckNodePort answers from now; a zero Port: it has none. It costs what that Service
// costs. A changed count of endpoints leaves the listeners alone.
func (s *Services) Set(name types.NamespacedName, h services.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if former := s.wanted[name]; former.Port != 0 && former.Port != h.Port {
		s.release(name, former.Port)
	}
	if h.Port == 0 {
		delete(s.wanted, name)
		return
	}
	s.wanted[name] = h
	queue := s.ports[h.Port]
	switch slices.Index(queue, name) {
	case 0:
		c := s.serving[name]
		former := c.health.Swap(&h)
		if former.Has4 != h.Has4 || former.Has6 != h.Has6 {
			s.listen(c)
		}
	case -1:
		s.ports[h.Port] = append(queue, name)
		if len(queue) == 0 {
			s.serve(name)
			return
		}
		s.cfg.Log.Error("two Services have the same healthCheckNodePort: the second one's is not served",
			"port", h.Port, "first", queue[0], "second", name)
	}
}

// serve listens for a Service that has its port.
func (s *Services) serve(name types.NamespacedName) {
	h := s.wanted[name]
	c := &checks{name: name, port: h.Port, listeners: map[listenAt]*listener{}}
	c.health.Store(&h)
	s.serving[name] = c
	s.listen(c)
}

// release takes a port from a Service, and gives it to the next that wants it.
func (s *Services) release(name types.NamespacedName, port uint16) {
	queue := slices.DeleteFunc(s.ports[port], func(n types.NamespacedName) bool { return n == name })
	if s.ports[port] = queue; len(queue) == 0 {
		delete(s.ports, port)
	}
	c := s.serving[name]
	if c == nil {
		return
	}
	c.close()
	delete(s.serving, name)
	if len(queue) > 0 {
		s.serve(queue[0])
	}
	for _, c := range s.serving { // ports that were one too many
		for at, l := range c.listeners {
			if l == nil {
				c.listeners[at] = s.open(c, at)
			}
		}
	}
}

// listen opens what a Service's listeners lack, and closes what is too many.
func (s *Services) listen(c *checks) {
	want := map[listenAt]bool{}
	h := c.health.Load()
	for _, ipv6 := range []bool{false, true} {
		if ipv6 && !h.Has6 || !ipv6 && !h.Has4 {
			continue
		}
		if s.addrs == nil {
			want[listenAt{ipv6: ipv6}] = true
		}
		for _, a := range s.addrs {
			if a = a.Unmap(); a.Is6() == ipv6 {
				want[listenAt{a, ipv6}] = true
			}
		}
	}
	for at, l := range c.listeners {
		if !want[at] {
			l.close()
			delete(c.listeners, at)
		}
	}
	for at := range want {
		if _, there := c.listeners[at]; !there {
			if c.listeners[at] = s.open(c, at); c.listeners[at] == nil {
				s.cfg.Log.Error("a healthCheckNodePort is not served", "service", c.name, "port", c.port, "err", ErrTooMany)
			}
		}
	}
}

// listening counts the ports that are listened on.
func (s *Services) listening() int {
	n := 0
	for _, c := range s.serving {
		for _, l := range c.listeners {
			if l != nil {
				n++
			}
		}
	}
	return n
}

// open listens, unless too many do.
func (s *Services) open(c *checks, at listenAt) *listener {
	if s.listening() >= s.cfg.MaxListeners {
		return nil
	}
	network, host := "tcp4", ""
	if at.ipv6 {
		network = "tcp6" // with IPV6_V6ONLY: each family has its own
	}
	if at.addr.IsValid() {
		host = at.addr.String()
	}
	server := NewServer(ServerConfig{
		Name: "the healthCheckNodePort of " + c.name.String(), Network: network,
		Addr:    net.JoinHostPort(host, strconv.Itoa(int(c.port))),
		Handler: s.handler(c, at.ipv6), Log: s.cfg.Log, Holder: s.cfg.Holder, Retry: s.cfg.Retry, Budget: s.budget,
		NoIPv6: s.noIPv6,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { server.Run(ctx) })
	return &listener{server, func() { cancel(); running.Wait() }}
}

func (l *listener) close() {
	if l != nil {
		l.stop()
	}
}

func (c *checks) close() {
	for _, l := range c.listeners {
		l.close()
	}
}

// check is the body of an answer, with kube-proxy's names.
type check struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (s *Services) handler(c *checks, ipv6 bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		h := c.health.Load()
		body := check{LocalEndpoints: h.Ready4, ServiceProxyHealthy: s.cfg.Healthy()}
		body.Service.Namespace, body.Service.Name = c.name.Namespace, c.name.Name
		if ipv6 {
			body.LocalEndpoints = h.Ready6
		}
		code := http.StatusServiceUnavailable
		if body.LocalEndpoints > 0 && body.ServiceProxyHealthy {
			code = http.StatusOK
		}
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(body.LocalEndpoints))
		answer(w, code, body)
	}
}

// Unserved are the healthCheckNodePorts that are not served, sorted.
func (s *Services) Unserved() []Unserved {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Unserved
	for port, queue := range s.ports {
		for _, name := range queue[1:] {
			out = append(out, Unserved{name, port, fmt.Sprintf("%s has the same healthCheckNodePort, and came first", queue[0])})
		}
	}
	for name, c := range s.serving {
		for _, l := range c.listeners {
			if l == nil {
				out = append(out, Unserved{name, c.port, ErrTooMany.Error()})
			} else if st := l.Status(); !st.Listening && st.Err != "" {
				out = append(out, Unserved{name, c.port, st.Err})
			}
		}
	}
	slices.SortFunc(out, func(a, b Unserved) int {
		return cmp.Or(services.CompareNames(a.Service, b.Service), cmp.Compare(a.Err, b.Err))
	})
	return out
}

// Close closes all listeners; Set does nothing after it.
func (s *Services) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.serving {
		c.close()
	}
	clear(s.serving)
	clear(s.ports)
	clear(s.wanted)
}
