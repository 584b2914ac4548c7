package kubeproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// healthTimeout bounds the whole question: on loopback an answer takes less
// than a millisecond.
const healthTimeout = 200 * time.Millisecond

// healthz asks kube-proxy's health port, where a process was seen or none can
// be. It proves nothing alone: firsthop's own runtime answers on that port too.
func (d *Detector) healthz(ctx context.Context, process Answer) Evidence {
	e := Evidence{Source: SourceHealthz, Found: No}
	if process == No {
		e.Detail = "not asked: no process"
		return e
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	for _, addr := range d.health {
		status, err := askHealth(ctx, addr)
		switch {
		case err == nil:
			e.Found, e.Detail = Yes, fmt.Sprintf("%s answers %s", addr, status)
			return e
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		default:
			e.Found, e.Detail = Unknown, fmt.Sprintf("%s: %v", addr, err)
			return e
		}
	}
	e.Detail = "nothing listens at " + strings.Join(d.health, " or ")
	return e
}

// askHealth returns a status like "200 OK". It dials by itself: http.Transport
// does so on another thread, which may be in another network namespace.
func askHealth(ctx context.Context, addr string) (status string, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		return "", err
	}
	if err := req.Write(conn); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return answer.Status, answer.Body.Close()
}
