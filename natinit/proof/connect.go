package proof

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

// connectRequest is one question to the connecting process.
type connectRequest struct {
	ID   uint64         `json:"id"`
	Addr netip.AddrPort `json:"addr"`
	// TLS asks for a handshake, verified with Trust, and for /readyz.
	TLS     bool             `json:"tls,omitempty"`
	Trust   *apiserver.Trust `json:"trust,omitempty"`
	Timeout time.Duration    `json:"timeout"`
}

// connectAnswer is what became of one connection.
type connectAnswer struct {
	ID       uint64 `json:"id"`
	Cookie   uint64 `json:"cookie"` // of the socket; the balancer remembers it
	Answered bool   `json:"answered"`
	Verified bool   `json:"verified"` // its certificate is of this cluster
	Ready    bool   `json:"ready"`
	Foreign  bool   `json:"foreign"` // it is no API server of this cluster
	Error    string `json:"error,omitempty"`
}

// Connector connects as a process of the attached cgroup would, several times
// at once if it is asked to.
type Connector interface {
	connect(ctx context.Context, req connectRequest) (connectAnswer, error)
	Close() error
}

// InProcess is the connector for a process that is inside the cgroup itself.
type InProcess struct{}

func (InProcess) connect(ctx context.Context, req connectRequest) (connectAnswer, error) {
	return connectOnce(ctx, req), nil
}

// Close has nothing to end.
func (InProcess) Close() error { return nil }

const (
	// readyWait bounds how long /readyz may take: the handshake is what is asked
	// for, and a server that is slow is no reason to hold the node up.
	readyWait = time.Second
	// lateAnswer is how much later than the time is up an answer may come.
	lateAnswer = 200 * time.Millisecond
)

// connectOnce makes one real connection and says what its socket saw.
func connectOnce(ctx context.Context, req connectRequest) connectAnswer {
	var ans connectAnswer
	var failed error
	d := net.Dialer{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		ans.Cookie, failed = cookieOf(raw)
		return nil
	}}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		ans.Answered = ans.Answered || err == nil
		return c, err
	}
	cfg := probe.Config{Strength: probe.TCP, Timeout: req.Timeout, Dial: dial}
	at := apiserver.Endpoint{Addr: req.Addr}
	if req.TLS {
		cfg.Strength, cfg.Trust, cfg.ReadyWait = probe.Ready, req.Trust, readyWait
		if req.Trust != nil {
			at.Host = req.Trust.Host // the one name that the host's own CA certificates count for
		}
	}
	r := probe.Endpoints(ctx, []apiserver.Endpoint{at}, cfg)[0]
	ans.ID = req.ID
	ans.Verified, ans.Foreign = r.Verified, r.Kind == apiserver.KindTLS
	ans.Ready = req.TLS && r.State == apiserver.Live
	if err := errors.Join(r.Err, failed); err != nil {
		ans.Error = err.Error()
	}
	return ans
}
