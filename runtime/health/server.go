package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/runtime/limit"
)

// The limits of a Server. Clients are not known: none may keep a connection for long.
const (
	firstRetry    = 250 * time.Millisecond
	slowestRetry  = 5 * time.Second
	headerTimeout = 5 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10 // bytes
	connections   = 128      // at once, see package limit
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Name says what is served, for logs and errors.
	Name string
	// Network is "tcp", "tcp4" or "tcp6"; "" is "tcp".
	Network string
	// Addr is host:port. With "tcp" and an empty host it is all addresses of both families.
	Addr    string
	Handler http.Handler
	Log     *slog.Logger
	// Holder names who listens on a TCP port, "" if that is unknown. It may be nil.
	Holder func(port uint16) string
	// Retry is the longest time between two tries to get the address. 0: 5 s.
	Retry time.Duration
	// Budget is how many connections there may be at once; nil: 128 of its own.
	Budget *limit.Budget
	// NoIPv6 is called once if this was to be served over IPv6 and the host has none; nil: it is logged.
	NoIPv6 func()
}

// Server serves HTTP at one address, as soon as that is free.
type Server struct {
	cfg ServerConfig

	mu     sync.Mutex
	status ServerStatus
	reason string // the last that was logged
}

// ServerStatus is how a Server is.
type ServerStatus struct {
	Name string
	Addr string // as asked for; while it listens, as it is: with the port that the kernel chose for 0
	// Listening is true while connections are accepted.
	Listening bool
	// Err is why not, "" before the first try.
	Err string
	// Holder is who has the port instead, as far as that is known: "kube-proxy (pid 42)".
	Holder string
}

// NewServer makes a Server; Run lets it serve.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Network == "" {
		cfg.Network = "tcp"
	}
	if cfg.Retry <= 0 {
		cfg.Retry = slowestRetry
	}
	if cfg.Budget == nil {
		cfg.Budget = limit.NewBudget(connections)
	}
	if cfg.NoIPv6 == nil { // where both families are asked for, Go has listened on IPv4 alone then
		cfg.NoIPv6 = func() { cfg.Log.Warn("this host has no IPv6: not served", "what", cfg.Name, "at", cfg.Addr) }
	}
	return &Server{cfg: cfg, status: ServerStatus{Name: cfg.Name, Addr: cfg.Addr}}
}

// Status may be asked for at any time, by any goroutine.
func (s *Server) Status() ServerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run serves until the context ends; connections are closed then, and nothing of it is left when it returns. An address
// that is not available is retried indefinitely, and logged once for each reason; one of a family that the kernel does
// not have is given up. Call it once.
func (s *Server) Run(ctx context.Context) {
	wait := min(firstRetry, s.cfg.Retry)
	for ctx.Err() == nil {
		began := time.Now()
		err := s.serve(ctx)
		if errors.Is(err, unix.EAFNOSUPPORT) { // it won't come before the next boot
			s.cfg.NoIPv6()
			return
		}
		s.failed(err)
		if time.Since(began) > s.cfg.Retry {
			wait = min(firstRetry, s.cfg.Retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, s.cfg.Retry)
	}
}

// serve listens and serves once.
func (s *Server) serve(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, s.cfg.Network, s.cfg.Addr)
	if err != nil {
		return s.explain(err)
	}
	srv := &http.Server{
		Handler:           s.cfg.Handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       answerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // what clients send
	}
	s.cfg.Budget.Apply(srv)
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		srv.Close()
	})
	s.listening(l.Addr().String())
	err = srv.Serve(s.cfg.Budget.Listen(l))
	if !stop() {
		<-closed
	}
	srv.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s at %s: %w", s.cfg.Name, s.cfg.Addr, err)
}

// explain says who has the address, where that is what is wrong.
func (s *Server) explain(err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen for %s: %w", s.cfg.Name, err)
	}
	holder := ""
	if _, port, splitErr := net.SplitHostPort(s.cfg.Addr); splitErr == nil && s.cfg.Holder != nil {
		if n, parseErr := strconv.ParseUint(port, 10, 16); parseErr == nil {
			holder = s.cfg.Holder(uint16(n))
		}
	}
	return fmt.Errorf("listen for %s at %s: %w", s.cfg.Name, s.cfg.Addr, &heldError{by: holder})
}

// heldError is a port that another program has.
type heldError struct{ by string } // "": it is not known which

func (e *heldError) Error() string {
	return fmt.Sprintf("%s has the port; it is taken when it gets free: %s", cmp.Or(e.by, "another program"), unix.EADDRINUSE)
}

func (e *heldError) Unwrap() error { return unix.EADDRINUSE }

func (s *Server) listening(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := s.status.Err != ""
	s.status.Addr, s.status.Listening, s.status.Err, s.status.Holder, s.reason = addr, true, "", "", ""
	level := slog.LevelDebug
	if again {
		level = slog.LevelInfo
	}
	s.cfg.Log.Log(context.Background(), level, "listening", "for", s.cfg.Name, "at", addr)
}

func (s *Server) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Addr, s.status.Listening, s.status.Holder = s.cfg.Addr, false, ""
	if err == nil {
		return
	}
	reason := err.Error()
	s.status.Err = reason
	var held *heldError
	if errors.As(err, &held) {
		s.status.Holder = held.by
	}
	if errors.Is(err, unix.EADDRINUSE) {
		reason = unix.EADDRINUSE.Error() // whether or not the holder could be found this time
	}
	if reason != s.reason {
		s.cfg.Log.Error("not listening", "for", s.cfg.Name, "err", err)
	}
	s.reason = reason
}
