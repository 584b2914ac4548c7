package main

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/apitest"
)

// joined makes a host's root with the kubelet's kubeconfig of a cluster, and returns it.
func (n node) joined(ca []byte) string {
	n.Helper()
	root := n.T.TempDir()
	dir := filepath.Join(root, "etc/kubernetes")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.Fatal(err)
	}
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`, server4, base64.StdEncoding.EncodeToString(ca))
	if err := os.WriteFile(filepath.Join(dir, "kubelet.conf"), []byte(kubeconfig), 0o600); err != nil {
		n.Fatal(err)
	}
	return root
}

// api starts a TLS server of a cluster.
func (n node) api(ca *apitest.CA, addr string, h http.HandlerFunc) {
	n.Helper()
	ln, err := n.Listen("tcp", addr)
	if err != nil {
		n.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, TLS: &tls.Config{Certificates: []tls.Certificate{ca.Server(n.T, apitest.Names...)}},
		Config: &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}}
	srv.StartTLS()
	n.Cleanup(srv.Close)
}

func TestProveVerifiedIsTheDefaultWhereTheCAIsKnown(t *testing.T) {
	ours, theirs := apitest.NewCA(t), apitest.NewCA(t)
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	slow := func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(1500 * time.Millisecond):
		case <-r.Context().Done():
		}
	}
	for _, tc := range []struct {
		name   string
		ca     *apitest.CA // of the server
		answer http.HandlerFunc
		more   []string
		code   bootstrap.ExitCode
		proof  string
		says   string
	}{
		{"a ready server", ours, ok, nil, 0, " ok=true got=ready", ""},
		{"one that is not ready is a warning", ours, status(500), nil, 0, " ok=true got=verified", "is not ready: /readyz says 500"},
		{"so is a slow one", ours, slow, nil, 0, " ok=true got=verified", "is not ready: no answer in time"},
		{"unless readiness is asked for", ours, status(500), []string{"--prove", "ready"}, bootstrap.ExitProof, " ok=false got=verified", "/readyz says 500"},
		{"another cluster's server", theirs, ok, nil, bootstrap.ExitProof, " ok=false got=answered", "no API server of the cluster that /etc/kubernetes/kubelet.conf names"},
		{"whose readiness counts for nothing", theirs, ok, []string{"--prove", "ready"}, bootstrap.ExitProof, " ok=false got=answered", "no API server of the cluster"},
		{"unless TCP is enough", theirs, ok, []string{"--prove", "answered"}, 0, " ok=true got=answered", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.api(tc.ca, server4, tc.answer)
			line := append([]string{"init", "--root", n.joined(ours.PEM), "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "-o", "json"}, tc.more...)
			r := n.run(line...)
			checkProofs(t, r.exits(tc.code).report(), vip4+tc.proof)
			if !strings.Contains(r.stdout, tc.says) {
				t.Errorf("does not say %q:\n%s", tc.says, r.stdout)
			}
		})
	}
}

func TestProveVerifiedByAChildInTheCgroup(t *testing.T) {
	ours := apitest.NewCA(t)
	n := newNode(t)
	n.inside = false // init itself is elsewhere
	n.api(ours, server4, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	r := n.run("init", "--root", n.joined(ours.PEM), "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "-o", "json").exits(0)
	checkProofs(t, r.report(), vip4+" ok=true got=verified")
}

func TestProveWithoutCASaysThatOnlyTCPIsProven(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "a", server4)
	line := []string{"init", "--root", t.TempDir(), "--service-ips", vip4, "--endpoints", server4, "--persist", "off"}
	n.run(line...).exits(0).says("only TCP is proven", "no CA certificate of this node's cluster is known")
	n.run(append(line, "--prove", "verified")...).exits(bootstrap.ExitProof).says("no CA certificate of this node's cluster is known", "--prove answered")
}

// TestProveNamesServersThatAreDown: the commonest failure is told as that, with each server's own error.
func TestProveNamesServersThatAreDown(t *testing.T) {
	n := newNode(t)
	if err := n.Unreachable("192.0.2.67/32"); err != nil {
		t.Fatal(err)
	}
	for range 3 { // whatever the last attempt has time for
		r := n.run("init", "--service-ips", vip4, "--endpoints", server4+",192.0.2.67:6443", "--persist", "off", "--timeout", "400ms", "-o", "json").exits(bootstrap.ExitProof).report()
		checkProofs(t, r, vip4+" ok=false got=translated")
		for _, want := range []string{"no API server answered at the known addresses", server4 + ": connection refused", "192.0.2.67:6443: no route to host"} {
			if f := r.Failure(); !strings.Contains(f.Reason, want) {
				t.Errorf("does not say %q: %s", want, f.Reason)
			}
		}
	}
	n.run("init", "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "--prove", "translated").exits(0)
	n.run("doctor").says("which don't answer", "of which none answers: "+server4+" is dead: connection refused")
}

// TestProveMeetsABackendThatHangs: one of two answers its first question, of discovery, and is silent from then on.
func TestProveMeetsABackendThatHangs(t *testing.T) {
	ours := apitest.NewCA(t)
	for range 4 { // the proof meets either
		n := newNode(t)
		n.api(ours, server4, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
		ln, err := n.Listen("tcp", "127.0.0.2:6443")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go answerOnce(ln, ours.Server(t, apitest.Names...))
		r := n.run("init", "--root", n.joined(ours.PEM), "--service-ips", vip4, "--endpoints", server4+",127.0.0.2:6443", "--persist", "off", "--timeout", "5s", "-o", "json").exits(0).report()
		checkProofs(t, r, vip4+" ok=true got=ready")
	}
}

func answerOnce(ln net.Listener, cert tls.Certificate) {
	for first := true; ; first = false {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}); first {
			if _, err := tc.Read(make([]byte, 4096)); err == nil {
				io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			}
		}
	}
}
