package uninstall

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/test/apitest"
)

// nodeServer is an API server that has one Node, which it gives and changes. status is that of an answer to a change.
func nodeServer(t *testing.T, ca *apitest.CA, status int, patched *string) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/n1/status":
			b, _ := io.ReadAll(r.Body)
			*patched = string(b)
			w.WriteHeader(status)
			io.WriteString(w, "{}")
		case r.URL.Path == "/api/v1/nodes/n1":
			io.WriteString(w, `{"metadata":{"labels":{"firsthop.io/proxy":"active"}},"status":{"conditions":[{"type":"FirsthopReady"}]}}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Server(t, apitest.Names...)}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func TestWithMarksRemovesLabelAndCondition(t *testing.T) {
	ca := apitest.NewCA(t)
	all := []Removal{{"label", "firsthop.io/proxy of Node n1"}, {"condition", "FirsthopReady of Node n1"}}
	for _, tc := range []struct {
		name    string
		kubelet bool // it has credentials
		status  int
		ran     bool
		own     bool
		removed []Removal
		patched bool
		says    []string
	}{
		{"with the kubelet's credentials", true, 200, true, false, all, true, nil},
		{"refused", true, 403, true, false, nil, true, []string{"stay", "kubectl label node n1 firsthop.io/proxy-", "--subresource=status", "FirsthopReady"}},
		{"without credentials", false, 200, true, false, nil, false, []string{"stay", "kubectl label node NAME firsthop.io/proxy-"}},
		{"without credentials, where no runtime was", false, 200, false, false, nil, false, nil},
		{"by an instance of its own", true, 200, true, true, nil, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var patched string
			at := nodeServer(t, ca, tc.status, &patched)
			root := t.TempDir()
			if tc.kubelet {
				path := filepath.Join(root, "etc/kubernetes/kubelet.conf")
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(ca.Kubeconfig(t, "https://"+at.String(), "system:node:n1", "system:nodes")), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			u := &uninstaller{Places: mounts.Places{HostRoot: root}, servers: []netip.AddrPort{at}, ran: tc.ran}
			u.Log = slog.New(slog.NewTextHandler(&log, nil))
			if tc.own {
				u.Cgroup = "/sys/fs/cgroup/x"
			}
			u.withMarks(t.Context(), query.ReadMarks)
			if patched != "" {
				t.Error("to look at it changes the Node")
			}
			u.removals = nil
			log.Reset()
			u.withMarks(t.Context(), query.RemoveMarks)
			if !slices.Equal(u.removals, tc.removed) || (patched != "") != tc.patched {
				t.Errorf("removed %v, by %q", u.removals, patched)
			}
			for _, want := range tc.says {
				if !strings.Contains(log.String(), want) {
					t.Errorf("it does not say %q: %s", want, &log)
				}
			}
			if len(tc.says) == 0 && log.Len() > 0 {
				t.Errorf("it says %s", &log)
			}
		})
	}
}
