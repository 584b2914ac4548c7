package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// handshake bounds the time to connect, authenticate and hear the manager's
// version: a bus daemon may be up while the manager is not on it.
const handshake = 3 * time.Second

// manager is systemd over D-Bus.
type manager struct {
	conn   *sdbus.Conn
	cancel context.CancelFunc // closes the connection
	socket string
}

var _ Manager = (*manager)(nil)

// OpenManager connects to systemd over the sockets of c: its private socket,
// as systemctl does for root, then the system bus. The private one needs no
// bus daemon, which at boot may not be there yet, and in a container often is
// not at all; but it answers only root, and only a peer whose pid it can see.
// Without a socket that answers OpenManager returns the files' Manager and the
// reasons. Nothing outside of c.Root is tried, so that a test or a container
// can't reach another systemd than the one it means.
func OpenManager(ctx context.Context, c Config) (Manager, error) {
	if c.manager != nil {
		return c.manager, nil
	}
	t := newTree(c)
	sockets := c.sockets
	if sockets == nil {
		for _, s := range []string{privateSocket, busSocket} {
			if at, err := t.file(s); err == nil {
				sockets = append(sockets, at)
			}
		}
	}
	var errs []error
	for _, s := range sockets {
		m, err := openSocket(ctx, s, handshake)
		if err == nil {
			return m, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no D-Bus socket given"))
	}
	version := DetectInit(c.Root).Version
	if c.initSystem != nil {
		version = c.initSystem.Version
	}
	return &files{t: t, version: version}, errors.Join(errs...)
}

const (
	privateSocket = "/run/systemd/private"
	busSocket     = "/run/dbus/system_bus_socket"
)

func openSocket(ctx context.Context, socket string, timeout time.Duration) (Manager, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, err
	}
	// The context lives as long as the connection, so the deadline of the
	// handshake is a timer that is stopped after it.
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(timeout, cancel)
	defer timer.Stop()
	conn, err := sdbus.NewConnection(func() (*dbus.Conn, error) { return dial(ctx, socket) })
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to systemd at %s: %w", socket, err)
	}
	m := &manager{conn: conn, cancel: cancel, socket: socket}
	if _, err := m.Version(ctx); err != nil {
		m.Close()
		return nil, fmt.Errorf("ask systemd at %s for its version: %w", socket, err)
	}
	return m, nil
}

func dial(ctx context.Context, socket string) (*dbus.Conn, error) {
	addr, done, err := socketAddress(socket)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := dbus.Dial("unix:path="+addr, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	// The uid, not a name: a name would have to be looked up.
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	// On the private socket there is no bus to say hello to.
	if path.Base(socket) != path.Base(privateSocket) {
		if err := conn.Hello(); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// socketAddress returns a path that fits into a sockaddr_un (108 bytes) and
// needs no escaping in a D-Bus address, through a descriptor of the directory.
func socketAddress(socket string) (addr string, done func(), err error) {
	if len(socket) < 100 && !strings.ContainsAny(socket, "%,;= ") {
		return socket, func() {}, nil
	}
	d, err := os.Open(path.Dir(socket))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), path.Base(socket)), func() { _ = d.Close() }, nil
}

func (m *manager) Close() { m.conn.Close(); m.cancel() }

func (m *manager) Version(context.Context) (string, error) {
	v, err := m.conn.GetManagerProperty("Version")
	if err != nil {
		return "", err
	}
	if s, err := strconv.Unquote(v); err == nil {
		return s, nil
	}
	return v, nil
}

func (m *manager) Enable(ctx context.Context, name string) error {
	_, _, err := m.conn.EnableUnitFilesContext(ctx, []string{name}, false, false)
	return m.explain("enable", name, err)
}

func (m *manager) Disable(ctx context.Context, name string) error {
	_, err := m.conn.DisableUnitFilesContext(ctx, []string{name}, false)
	if err = m.explain("disable", name, err); errors.Is(err, ErrNotFound) {
		return nil // no unit file and no link to it
	}
	return err
}

func (m *manager) Reload(ctx context.Context) error {
	if err := m.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reload systemd's units over %s: %w", m.socket, err)
	}
	return nil
}

func (m *manager) Stop(ctx context.Context, name string) error {
	s, err := m.State(ctx, name)
	if err != nil || s.ActiveState == "inactive" || s.ActiveState == "failed" {
		return err
	}
	done := make(chan string, 1)
	if _, err := m.conn.StopUnitContext(ctx, name, "replace", done); err != nil {
		return m.explain("stop", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("stop %s: the job ended as %s", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", name, ctx.Err())
	}
}

func (m *manager) State(ctx context.Context, name string) (State, error) {
	p, err := m.conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return State{}, m.explain("read", name, err)
	}
	text := func(key string) string { s, _ := p[key].(string); return s }
	s := State{
		LoadState:     text("LoadState"),
		UnitFileState: text("UnitFileState"),
		FragmentPath:  text("FragmentPath"),
		ActiveState:   text("ActiveState"),
	}
	s.NeedDaemonReload, _ = p["NeedDaemonReload"].(bool)
	return s, nil
}

// explain puts the action and our sentinel errors to what D-Bus said.
func (m *manager) explain(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[dbus.Error](err); ok {
		switch e.Name {
		case "org.freedesktop.systemd1.UnitMasked":
			return fmt.Errorf("%s %s: %w (%s)", verb, name, ErrMasked, e.Error())
		case "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.FileNotFound":
			return fmt.Errorf("%s %s: %w", verb, name, ErrNotFound)
		}
	}
	return fmt.Errorf("%s %s over %s: %w", verb, name, m.socket, err)
}
