package kubeproxy

import (
	"strings"
	"testing"
	"time"
)

func TestHealthz(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer string // "" for a port that takes connections and says nothing, "-" for none
		want   Answer
		detail string
	}{
		{"healthy", "HTTP/1.1 200 OK\r\n\r\n{}", Yes, "127.0.0.1:10256 answers 200 OK"},
		{"unhealthy answers too", "HTTP/1.1 503 Service Unavailable\r\n\r\n", Yes, "answers 503"},
		{"something else", "SSH-2.0-OpenSSH\r\n", Unknown, "malformed HTTP response"},
		{"silent", "", Unknown, "timeout"},
		{"nothing there", "-", No, "nothing listens"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.startedBy("kube-proxy", n.startProcess(n.lab, "kube-proxy"))
			if test.answer != "-" {
				n.serveHealthz(test.answer)
			}
			start := time.Now()
			p := n.detect()
			if took := time.Since(start); took > 5*healthTimeout {
				t.Errorf("took %v", took)
			}
			if e := find(t, p, SourceHealthz); e.Found != test.want || !strings.Contains(e.Detail, test.detail) {
				t.Errorf("got %s: %s; want %s: %s", e.Found, e.Detail, test.want, test.detail)
			}
			if p.State != Running {
				t.Errorf("state %q: the port decides nothing for a kube-proxy that runs", p.State)
			}
		})
	}
}
