package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// served starts a server for a run directory, which ends with the test or by stop.
func served(t *testing.T, runDir string, status Status, services ...Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Config{
			RunDir: runDir, Log: slog.New(slog.DiscardHandler),
			Services: func() []Service { return services }, Status: func() Status { return status },
		})
	}()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if st, err := NewClient(runDir).Status(t.Context()); err == nil && st.Version == status.Version {
			return stop
		}
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("the server doesn't answer")
		}
	}
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	web := Service{Index: 1024, Namespace: "default", Name: "web", Port: "http", Proto: "tcp", Family: "IPv4", Kinds: []string{"cluster IP"}}
	stop := served(t, dir, Status{PID: 4711, Version: "v1", Adopted: true}, web)
	c := NewClient(dir)
	st, err := c.Status(t.Context())
	if err != nil || st.PID != 4711 || !st.Adopted {
		t.Errorf("%+v, %v", st, err)
	}
	list, err := c.Services(t.Context())
	if err != nil || len(list) != 1 || list[0].String() != "default/web:http" || list[0].Index != 1024 {
		t.Errorf("%+v, %v", list, err)
	}
	fi, err := os.Lstat(filepath.Join(dir, SocketName))
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
	stop()
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestClientWithoutARuntime(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	stale := t.TempDir()
	killed(t, stale)
	for name, dir := range map[string]string{
		"an empty run directory": t.TempDir(), "no run directory": "/nonexistent/run", "one with a long path": long,
		"the socket of one that was killed": stale,
	} {
		if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNoRuntime) {
			t.Errorf("%s: %v, want ErrNoRuntime", name, err)
		}
	}
}

// killed leaves what a runtime leaves that is killed.
func killed(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{SocketName, nextName} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, name)}); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
}

func TestServeReplacesAStaleSocket(t *testing.T) {
	dir := t.TempDir()
	killed(t, dir)
	served(t, dir, Status{Version: "next"})()
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestServeInALongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	served(t, dir, Status{Version: "long"})()
}

func TestServeLeavesOtherFilesAlone(t *testing.T) {
	for _, name := range []string{SocketName, nextName} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		err := Serve(t.Context(), Config{RunDir: dir, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want its name", name, err)
		}
		if data, err := os.ReadFile(path); string(data) != "mine" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

// TestServeLeavesASuccessorsSocket: one that ends late must not take away the socket of the next.
func TestServeLeavesASuccessorsSocket(t *testing.T) {
	dir := t.TempDir()
	first := served(t, dir, Status{Version: "first"})
	served(t, dir, Status{Version: "second"})
	first()
	if st, err := NewClient(dir).Status(t.Context()); err != nil || st.Version != "second" {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestServeIsReadOnly(t *testing.T) {
	dir := t.TempDir()
	served(t, dir, Status{Version: "v1"})
	c := NewClient(dir)
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/v1/status", http.StatusOK},
		{http.MethodPost, "/v1/status", http.StatusMethodNotAllowed},
		{http.MethodPut, "/v1/services", http.StatusMethodNotAllowed},
		{http.MethodDelete, "/v1/services", http.StatusMethodNotAllowed},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
		{http.MethodGet, "/", http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://runtime"+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, resp.StatusCode, tc.want)
		}
	}
}

// TestClientOfARuntimeThatHangs is told from none: it holds the socket and doesn't answer.
func TestClientOfARuntimeThatHangs(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := NewClient(dir)
	c.http.Timeout = 50 * time.Millisecond
	if _, err := c.Status(t.Context()); err == nil || errors.Is(err, ErrNoRuntime) {
		t.Errorf("%v, want another error than ErrNoRuntime", err)
	}
}
