package apihealth

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

const (
	a1, a2, a3 = "192.0.2.11:6443", "192.0.2.12:6443", "192.0.2.13:6443"
	b1         = "[2001:db8::11]:6443"
	vip        = "10.96.0.1:443"

	// patience is for what has no promise but must come.
	patience = 20 * time.Second
)

// rig is a lab with API servers and one monitor.
type rig struct {
	t    testing.TB
	l    *lab.Lab
	ca   *standin.Authority
	cfg  Config
	hook func(*Monitor) // before Run
	m    *Monitor
	logs *logBuffer
	news chan struct{} // room for one: something was given out
	end  func()

	mu   sync.Mutex
	sets []Set
}

func newRig(t testing.TB) *rig {
	t.Helper()
	l := lab.New(t)
	ca, err := standin.NewAuthority(netip.MustParseAddr("10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AddAddr("192.0.2.11/32", "192.0.2.12/32", "192.0.2.13/32", "2001:db8::11/128"); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, l: l, ca: ca, logs: &logBuffer{}, news: make(chan struct{}, 1)}
	r.cfg = Config{
		Log:      slog.New(slog.NewTextHandler(r.logs, nil)),
		Services: []netip.AddrPort{netip.MustParseAddrPort(vip)},
		Root:     t.TempDir(), StateDir: filepath.Join(t.TempDir(), "state"),
		CA: ca.PEM(), Dial: l.DialContext, Interval: 200 * time.Millisecond,
		OnChange: func(s Set) {
			if len(s.V4)+len(s.V6) == 0 {
				t.Error("was given an empty set")
			}
			r.mu.Lock()
			r.sets = append(r.sets, s)
			r.mu.Unlock()
			select {
			case r.news <- struct{}{}:
			default:
			}
		},
	}
	return r
}

// run starts the monitor; it ends with the test, or with r.end.
func (r *rig) run() *Monitor {
	r.t.Helper()
	m, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.hook != nil {
		r.hook(m)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	r.m = m
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error("Run:", err)
		}
	})
	r.t.Cleanup(r.end)
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("log:\n%s", r.logs)
		}
	})
	return m
}

// serve starts an API server; it may be closed before the test ends.
func (r *rig) serve(at string) *standin.APIServer { return r.serveAs(at, r.ca) }

func (r *rig) serveAs(at string, ca *standin.Authority) *standin.APIServer {
	r.t.Helper()
	s, err := standin.StartAPIServer(standin.APIServerConfig{Name: at, Addrs: addrs(at), Network: r.l, Authority: ca})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.Close)
	return s
}

// set gives the last set as text, "" before there is one.
func (r *rig) set() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sets) == 0 {
		return ""
	}
	s := r.sets[len(r.sets)-1]
	return text(append(slices.Clone(s.V4), s.V6...))
}

func (r *rig) changes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sets)
}

// await waits until the set is the given one, and says how long it took.
func (r *rig) await(want ...string) time.Duration {
	r.t.Helper()
	start := time.Now()
	timeout := time.After(patience)
	for r.set() != strings.Join(want, " ") {
		select {
		case <-r.news:
		case <-timeout:
			r.t.Fatalf("set is %q, want %q\n%+v", r.set(), want, r.m.Status().Endpoints)
		}
	}
	return time.Since(start)
}

// until waits for a condition on the status.
func (r *rig) until(what string, ok func(Status) bool) {
	r.t.Helper()
	lab.Await(r.t, what, func() bool { return ok(r.m.Status()) })
}

// lookNow makes the next look due, as when half a minute has passed.
func (r *rig) lookNow() {
	r.t.Helper()
	lab.Await(r.t, "no look is under way", func() bool {
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		if r.m.looking {
			return false // it would set the time of the next one when it is over
		}
		r.m.lookDue = time.Now()
		r.m.notify()
		return true
	})
}

// endpoint gives what is known about one address.
func (s Status) endpoint(at string) EndpointStatus {
	for _, e := range s.Endpoints {
		if e.Endpoint.Addr.String() == at {
			return e
		}
	}
	return EndpointStatus{}
}

// silence makes packets to an address vanish, of old connections too; unsilence ends that.
func (r *rig) silence(at string) {
	r.t.Helper()
	p := prefix(at)
	if err := r.l.DelAddr(p); err != nil {
		r.t.Fatal(err)
	}
	if err := r.l.Drop(p); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) unsilence(at string) {
	r.t.Helper()
	p := prefix(at)
	if err := r.l.Undrop(p); err != nil {
		r.t.Fatal(err)
	}
	if err := r.l.AddAddr(p); err != nil {
		r.t.Fatal(err)
	}
}

func prefix(at string) string {
	a := netip.MustParseAddrPort(at).Addr()
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// kubeletConf writes the file of a kubeadm node.
func (r *rig) kubeletConf(server string, ca *standin.Authority) {
	r.t.Helper()
	r.file("etc/kubernetes/kubelet.conf", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, server, base64.StdEncoding.EncodeToString(ca.PEM())))
}

func (r *rig) file(path, content string) {
	r.t.Helper()
	path = filepath.Join(r.cfg.Root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	// Renamed in, as kubeadm does it: half a file is another test.
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
}

func addrs(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func endpoints(t testing.TB, list string) []apiserver.Endpoint {
	t.Helper()
	out, err := apiserver.ParseEndpoints(list)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func text(list []netip.AddrPort) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// logBuffer may be written and read at the same time.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func readTestFile(r *rig, path string) ([]byte, error) {
	return os.ReadFile(filepath.Join(r.cfg.Root, path))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
