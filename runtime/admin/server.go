package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Config is what a server needs. The functions may be called by several
// goroutines at once, and must not wait for the network.
type Config struct {
	RunDir   string // holds the socket; its owner has the runtime's lock
	Log      *slog.Logger
	Services func() []Service
	Status   func() Status
}

// Serve answers until ctx ends, and then removes the socket. A socket that is
// there already is taken for that of a runtime that was killed: whoever calls
// this holds the runtime's lock. Anything else there is left alone, an error.
func Serve(ctx context.Context, cfg Config) error {
	l, err := listen(cfg.RunDir)
	if err != nil {
		return err
	}
	defer l.close()
	srv := &http.Server{
		Handler:           handler(cfg),
		ReadHeaderTimeout: 2 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       10 * time.Second,
		MaxHeaderBytes:    4 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.path, err)
	}
	return nil
}

func handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, _ *http.Request) { reply(w, cfg.Services()) })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, cfg.Status()) })
	return mux
}

func reply(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n')) // who asked is gone
}

// listener is the socket, at a place that a stale one may have.
type listener struct {
	net.Listener
	path string
	file os.FileInfo // what was put there
	dir  *os.File    // by which a long path is reached; may be nil
}

// nextName is where the socket is made, before it takes its place with the
// right mode.
const nextName = "." + SocketName + ".new"

func listen(runDir string) (_ *listener, err error) {
	l := &listener{path: filepath.Join(runDir, SocketName)}
	next := filepath.Join(runDir, nextName)
	for _, path := range []string{l.path, next} {
		if err := onlySocket(path); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove a socket that was left: %w", err)
	}
	at, dir, err := reachable(runDir, nextName)
	if err != nil {
		return nil, err
	}
	l.dir = dir
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	unixListener, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for status questions: %w", err)
	}
	unixListener.SetUnlinkOnClose(false)
	l.Listener = unixListener
	if err := os.Chmod(next, 0o600); err != nil {
		return nil, fmt.Errorf("keep the status socket to its owner: %w", err)
	}
	if l.file, err = os.Lstat(next); err != nil {
		return nil, fmt.Errorf("look at the status socket: %w", err)
	}
	if err := os.Rename(next, l.path); err != nil {
		return nil, fmt.Errorf("move the status socket into place: %w", err)
	}
	return l, nil
}

// onlySocket refuses what is no socket.
func onlySocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for a former status socket: %w", err)
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is not a socket: move it away if nothing needs it", path)
	}
	return nil
}

// close ends the listener, and removes the socket unless another took its place.
func (l *listener) close() {
	if l.Listener != nil {
		l.Listener.Close()
	}
	if st, err := os.Lstat(l.path); err == nil && l.file != nil && os.SameFile(st, l.file) {
		os.Remove(l.path)
	}
	if l.dir != nil {
		l.dir.Close()
	}
}

// longest is what fits into sun_path (unix(7)), with its final zero.
const longest = 107

// reachable gives a way to a socket that fits into an address: a long one leads
// through dir, which is then to be kept open while it is used.
func reachable(runDir, name string) (path string, dir *os.File, err error) {
	if path = filepath.Join(runDir, name); len(path) <= longest {
		return path, nil, nil
	}
	if dir, err = os.Open(runDir); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), dir, nil
}
