package apiserver

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver/apitest"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// serve runs a TLS server with a certificate, for as long as the test.
func serve(t *testing.T, address string, cert tls.Certificate, h http.Handler) Endpoint {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
	return Endpoint{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
}

var answersOK = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })

func TestTrustVerifiesWhatTheClustersCASigned(t *testing.T) {
	ours, other := apitest.NewCA(t), apitest.NewCA(t)
	renewed := ours.Renew(t) // the same key
	for sentence, tc := range map[string]struct {
		ca    []byte
		cert  tls.Certificate
		state State
		kind  Kind
	}{
		"a certificate of the CA":                             {ours.PEM, ours.Server(t, apitest.Names...), Live, KindNone},
		"one for the address alone":                           {ours.PEM, ours.Server(t, "10.99.0.1"), Live, KindNone},
		"one of another CA":                                   {ours.PEM, other.Server(t, apitest.Names...), Dead, KindTLS},
		"one of the second CA of a bundle":                    {slices.Concat(other.PEM, ours.PEM), ours.Server(t, apitest.Names...), Live, KindNone},
		"one of the renewed CA, by the former certificate":    {ours.PEM, renewed.Server(t, apitest.Names...), Live, KindNone},
		"one of the former CA, by the renewed certificate":    {renewed.PEM, ours.Server(t, apitest.Names...), Live, KindNone},
		"one of the CA that names no API server":              {ours.PEM, ours.Server(t, "etcd.example"), Dead, KindTLS},
		"one that has expired is ours, and cannot be used":    {ours.PEM, ours.ServerAt(t, time.Now().Add(-48*time.Hour), apitest.Names...), NotReady, KindExpired},
		"one that a slow clock takes for a future one is too": {ours.PEM, ours.ServerAt(t, time.Now().Add(24*time.Hour), apitest.Names...), NotReady, KindExpired},
		"an expired one of another CA is not ours":            {ours.PEM, other.ServerAt(t, time.Now().Add(-48*time.Hour), apitest.Names...), Dead, KindTLS},
	} {
		t.Run(sentence, func(t *testing.T) {
			e := serve(t, "10.99.0.1:0", tc.cert, answersOK)
			for _, strength := range []Strength{Verified, Ready} {
				r := Probe(t.Context(), []Endpoint{e}, ProbeConfig{Strength: strength, Timeout: 5 * time.Second, Trust: &Trust{CA: tc.ca}})[0]
				if r.State != tc.state || r.Kind != tc.kind || r.Verified != (tc.state != Dead) {
					t.Errorf("%s: %+v", strength, r)
				}
			}
			c := NewChecker(e, ProbeConfig{Timeout: 5 * time.Second, Trust: &Trust{CA: tc.ca}})
			defer c.Close()
			if r := c.Check(t.Context(), false); r.State != tc.state || r.Kind != tc.kind {
				t.Errorf("checker: %+v", r)
			}
		})
	}
}

// Anybody can get a certificate that a host trusts for a name of his own, and
// nobody can tell by it which cluster he is of.
func TestTrustOfTheHostCountsForOneNameAlone(t *testing.T) {
	public := apitest.NewCA(t)
	trust := &Trust{Host: "api.example", HostCA: public.PEM}
	own := serve(t, "10.99.0.1:0", public.Server(t, "api.example"), answersOK)
	own.Host = "api.example"
	stranger := serve(t, "10.99.0.2:0", public.Server(t, "evil.example"), answersOK)
	stranger.Host = "api.example"
	elsewhere := serve(t, "10.99.0.3:0", public.Server(t, apitest.Names...), answersOK)
	for _, r := range Probe(t.Context(), []Endpoint{own, stranger, elsewhere}, ProbeConfig{Strength: Verified, Timeout: 5 * time.Second, Trust: trust}) {
		want := map[Endpoint]struct {
			state    State
			verified bool
		}{own: {Live, true}, stranger: {Dead, false}, elsewhere: {Live, false}}[r.Endpoint]
		if r.State != want.state || r.Verified != want.verified {
			t.Errorf("got %+v, want %+v", r, want)
		}
	}
}

// The kubelet trusts its load balancer by the host's store, and pods trust the API servers behind it by the cluster's CA.
func TestTrustOfTheHostCountsBesideTheCA(t *testing.T) {
	cluster, public := apitest.NewCA(t), apitest.NewCA(t)
	trust := &Trust{CA: cluster.PEM, Host: "api.example", HostCA: public.PEM}
	balancer := serve(t, "10.99.0.1:0", public.Server(t, "api.example"), answersOK)
	balancer.Host = "api.example"
	behind := serve(t, "10.99.0.2:0", cluster.Server(t, apitest.Names...), answersOK)
	stranger := serve(t, "10.99.0.3:0", public.Server(t, "api.example"), answersOK)
	for _, r := range Probe(t.Context(), []Endpoint{balancer, behind, stranger}, ProbeConfig{Strength: Verified, Timeout: 5 * time.Second, Trust: trust}) {
		if want := r.Endpoint != stranger; r.Verified != want || (r.State == Live) != want {
			t.Errorf("got %+v, want verified: %t", r, want)
		}
	}
}

func TestSameCA(t *testing.T) {
	a, b := apitest.NewCA(t), apitest.NewCA(t)
	for sentence, tc := range map[string]struct {
		a, b []byte
		want bool
	}{
		"the same":                    {a.PEM, a.PEM, true},
		"another":                     {a.PEM, b.PEM, false},
		"bundles that overlap":        {slices.Concat(a.PEM, b.PEM), b.PEM, true},
		"renewed with the same key":   {a.PEM, a.Renew(t).PEM, true},
		"cross-signed by another":     {a.PEM, b.CrossSign(t, a), true},
		"none":                        {nil, a.PEM, false},
		"what is no certificate":      {[]byte("ca"), []byte("ca"), false},
		"a damaged one beside a good": {slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), a.PEM), a.PEM, true},
	} {
		if got := SameCA(tc.a, tc.b); got != tc.want || SameCA(tc.b, tc.a) != tc.want {
			t.Errorf("%s: %t, want %t", sentence, got, tc.want)
		}
	}
}
