package standin

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// ServedBy is the header of every response that names the instance.
const ServedBy = "X-Served-By"

// APIServerConfig says what a stand-in is.
type APIServerConfig struct {
	Name      string           // goes into the header ServedBy and into /version's gitVersion
	Addrs     []netip.AddrPort // where it listens
	Network   Network          // in which network namespace
	Authority *Authority
	Objects   *Objects // what it lists and watches; nil for nothing
}

// APIServer answers /version, /readyz, /livez and /healthz over TLS, HTTP/1.1 and HTTP/2, as kube-apiserver does.
type APIServer struct {
	Name  string
	Addrs []netip.AddrPort // as listened on, with the ports that the kernel chose for port 0

	http      http.Server
	objects   *Objects
	serving   sync.WaitGroup
	accepted  atomic.Int64
	served    atomic.Int64
	notReady  atomic.Bool
	delay     atomic.Int64 // of /readyz, nanoseconds
	anonymous atomic.Bool
}

// StartAPIServer listens on all addresses, or on none and returns an error.
func StartAPIServer(cfg APIServerConfig) (*APIServer, error) {
	s := &APIServer{Name: cfg.Name, objects: cfg.Objects}
	s.anonymous.Store(true)
	var ips []netip.Addr
	for _, addr := range cfg.Addrs {
		ips = append(ips, addr.Addr())
	}
	cert, err := cfg.Authority.issue(ips)
	if err != nil {
		return nil, err
	}
	s.http = http.Server{
		Handler:   s.handler(),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		// Probes that only connect, and clients that are killed, are no news.
		ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.accepted.Add(1)
			}
		},
	}
	for _, addr := range cfg.Addrs {
		ln, err := cfg.Network.Listen("tcp", addr.String())
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("start API server %s: %w", cfg.Name, err)
		}
		s.Addrs = append(s.Addrs, ln.Addr().(*net.TCPAddr).AddrPort())
		s.serving.Go(func() {
			if err := s.http.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
				panic(fmt.Sprintf("API server %s on %s: %v", s.Name, addr, err))
			}
		})
	}
	return s, nil
}

// Close stops listening and resets every connection, as a killed server does. The ports are free when it returns.
func (s *APIServer) Close() {
	_ = s.http.Close()
	s.serving.Wait()
}

// SetReady makes /readyz answer 200, as it does at the start, or 500.
func (s *APIServer) SetReady(ready bool) { s.notReady.Store(!ready) }

// SetDelay makes /readyz answer late.
func (s *APIServer) SetDelay(d time.Duration) { s.delay.Store(int64(d)) }

// SetAnonymous allows requests without credentials, as at the start, or answers all of them with 401, as an API server
// does with --anonymous-auth=false.
func (s *APIServer) SetAnonymous(allowed bool) { s.anonymous.Store(allowed) }

// Accepted returns how many connections were accepted, those without any request included.
func (s *APIServer) Accepted() int64 { return s.accepted.Load() }

// Served returns how many requests were answered.
func (s *APIServer) Served() int64 { return s.served.Load() }

func (s *APIServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /livez", ok)
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if s.objects != nil && s.objects.serve(w, r) {
			return
		}
		status(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.served.Add(1)
		w.Header().Set(ServedBy, s.Name)
		if !s.anonymous.Load() && r.Header.Get("Authorization") == "" {
			status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *APIServer) version(w http.ResponseWriter, _ *http.Request) {
	// The fields of k8s.io/apimachinery/pkg/version.Info that clients read.
	writeJSON(w, http.StatusOK, map[string]string{
		"major":        "1",
		"minor":        "36",
		"gitVersion":   "v1.36.3+" + s.Name,
		"gitCommit":    "0000000000000000000000000000000000000000",
		"gitTreeState": "clean",
		"buildDate":    "1970-01-01T00:00:00Z",
		"goVersion":    runtime.Version(),
		"compiler":     runtime.Compiler,
		"platform":     runtime.GOOS + "/" + runtime.GOARCH,
	})
}

func (s *APIServer) readyz(w http.ResponseWriter, r *http.Request) {
	if d := time.Duration(s.delay.Load()); d > 0 {
		select {
		case <-r.Context().Done():
		case <-time.After(d):
		}
	}
	if s.notReady.Load() {
		http.Error(w, "[-]etcd failed: reason withheld\nreadyz check failed", http.StatusInternalServerError)
		return
	}
	ok(w, r)
}

func ok(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok")
}

// status answers with a metav1.Status, as kube-apiserver does for every error.
func status(w http.ResponseWriter, code int, reason, message string) {
	writeJSON(w, code, map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": struct{}{},
		"status": "Failure", "message": message, "reason": reason, "code": code,
	})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client has gone
}
