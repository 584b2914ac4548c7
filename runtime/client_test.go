package runtime

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/test/apitest"
)

// pluginKubeconfig writes a kubeconfig whose plugin gives a token and a certificate.
func pluginKubeconfig(t *testing.T, dir string, ca *apitest.CA, server string) (kubeconfig string) {
	t.Helper()
	cert, key := ca.Client(t, "system:node:n1", "system:nodes")
	answer, err := json.Marshal(map[string]any{
		"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1",
		"status": map[string]string{"token": "from-plugin", "clientCertificateData": string(cert), "clientKeyData": string(key)},
	})
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig = filepath.Join(dir, "kubeconfig")
	for file, text := range map[string]string{
		filepath.Join(dir, "answer"): string(answer),
		filepath.Join(dir, "plugin"): "#!/bin/sh\necho >>" + dir + "/ran\ncat " + dir + "/answer\n",
		kubeconfig: fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}],
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}}}]}`,
			server, base64.StdEncoding.EncodeToString(ca.PEM)),
	} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return kubeconfig
}

func TestIdentityOfAPlugin(t *testing.T) {
	ca := apitest.NewCA(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := ""
		if len(r.TLS.PeerCertificates) > 0 {
			user = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s %s", r.Proto, user, r.Header.Get("Authorization"))
	}))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Server(t, "127.0.0.1")}, ClientCAs: pool, ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()

	dir := t.TempDir()
	cfg := &Config{Kubeconfig: pluginKubeconfig(t, dir, ca, srv.URL), Log: slog.New(slog.DiscardHandler), Version: "test"}
	id, err := newIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := id.dialBy(new(net.Dialer).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		resp, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "HTTP/2.0 system:node:n1 Bearer from-plugin" {
			t.Errorf("%q, %v", b, err)
		}
	}
	if ran, err := os.ReadFile(dir + "/ran"); err != nil || len(ran) != 1 {
		t.Errorf("ran %d times, %v", len(ran), err)
	}
}

// Root names the kubeconfig, so it is used; what others may have written into it is not run.
func TestIdentityRunsNoPluginOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of others")
	}
	ca := apitest.NewCA(t)
	for name, spoil := range map[string]func(dir string) error{
		"a user's kubeconfig": func(dir string) error { return os.Chown(dir+"/kubeconfig", 65534, 65534) },
		"a user's directory":  func(dir string) error { return os.Chown(dir, 65534, 65534) },
		"a group's directory": func(dir string) error { return os.Chmod(dir, 0o775) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var log bytes.Buffer
			cfg := &Config{Kubeconfig: pluginKubeconfig(t, dir, ca, "https://127.0.0.1:1"), Log: slog.New(slog.NewTextHandler(&log, nil))}
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := newIdentity(cfg); err == nil || !strings.Contains(err.Error(), hostfs.ErrUntrusted.Error()) {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(log.String(), "others than root may write the kubeconfig") {
				t.Errorf("the log says nothing of it: %s", log.String())
			}
			if _, err := os.Stat(dir + "/ran"); err == nil {
				t.Error("ran it")
			}
		})
	}
}

// Whether a file is trusted is judged from the root down, wherever the runtime was started.
func TestIdentityOfARelativePath(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := pluginKubeconfig(t, dir, apitest.NewCA(t), "https://127.0.0.1:1")
	t.Chdir(dir)
	var log bytes.Buffer
	cfg := &Config{Kubeconfig: "kubeconfig", Log: slog.New(slog.NewTextHandler(&log, nil))}
	id, err := newIdentity(cfg)
	if err != nil || id.plugin == nil || log.Len() > 0 || cfg.Kubeconfig != kubeconfig {
		t.Errorf("identity %+v of %s, error %v, log %s", id, cfg.Kubeconfig, err, log.String())
	}
}
