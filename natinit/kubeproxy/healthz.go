package kubeproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"
)

// healthTimeout bounds the whole question: on loopback an answer takes less
// than a millisecond.
const healthTimeout = 200 * time.Millisecond

// healthz asks kube-proxy's health port, where a process was seen or none can
// be. It proves nothing alone: firsthop's own runtime answers on that port too.
func (d detector) healthz(ctx context.Context, process Answer) Evidence {
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

// askHealth speaks HTTP/1.0 by hand: net/http would be a large part of a
// program that otherwise has no use for it at this point.
func askHealth(ctx context.Context, addr string) (status string, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.0\r\nHost: %s\r\n\r\n", addr); err != nil {
		return "", err
	}
	line, err := bufio.NewReaderSize(conn, 256).ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return parseStatus(string(line))
}

// parseStatus takes "200 OK" out of "HTTP/1.0 200 OK\r\n".
func parseStatus(line string) (string, error) {
	version, status, ok := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	if !ok || !strings.HasPrefix(version, "HTTP/1.") || len(status) < 3 {
		return "", fmt.Errorf("no HTTP answer: %q", line)
	}
	return status, nil
}
