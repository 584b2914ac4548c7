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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/limit"
)

// Config is what a server needs. The functions may be called by several
// goroutines at once, and must not wait for the network.
type Config struct {
	RunDir   string // holds the socket; its owner has the runtime's lock
	Log      *slog.Logger
	Services func() []Service
	Status   func() Status
}

// connections is how many there may be at once, see package limit.
const connections = 32

// lookInterval is how often it is looked whether the socket is still there.
const lookInterval = time.Second

// awaitLoss returns when ctx ends, or when somebody removed the socket.
func (l *listener) awaitLoss(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if st, err := os.Lstat(l.path); err != nil || !os.SameFile(st, l.file) {
			return
		}
	}
}

// Serve answers until ctx ends, or until somebody removes the socket: then it is to be called again. It removes the socket. A socket that is
// there already is taken for that of a runtime that was killed: the caller holds
// the runtime's lock. Anything else there is left alone, an error.
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
	budget := limit.NewBudget(connections)
	budget.Apply(srv)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		l.awaitLoss(ctx)
		srv.Close()
	}()
	if err := srv.Serve(budget.Listen(l)); !errors.Is(err, http.ErrServerClosed) {
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
	file os.FileInfo   // what was put there
	dir  *instance.Dir // by which it is reached
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
	config := net.ListenConfig{Control: ownerOnly}
	inner, err := config.Listen(context.Background(), "unix", at)
	if err != nil {
		return nil, fmt.Errorf("listen for status questions: %w", err)
	}
	inner.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Listener = inner
	if l.file, err = os.Lstat(next); err != nil {
		return nil, fmt.Errorf("look at the status socket: %w", err)
	}
	if err := dir.Rename(nextName, SocketName); err != nil {
		return nil, fmt.Errorf("move the status socket into place: %w", err)
	}
	return l, nil
}

// ownerOnly gives a socket its mode before it has a name, so that nobody can connect in between, and no name is
// followed to change a mode (unix_bind in net/unix/af_unix.c takes the socket inode's mode, less the umask).
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var chmodErr error
	err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, chmodErr)
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

// reachable gives a way to a socket that fits into an address, however long the directory's path is, and that nobody can
// turn to another directory: it leads through dir, which is to be kept open while it is used.
func reachable(runDir, name string) (path string, dir *instance.Dir, err error) {
	if dir, err = instance.Open(runDir); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), dir, nil
}
