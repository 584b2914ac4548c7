package probe

import (
	"crypto/tls"
	"slices"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestTrustVerifiesWhatTheClustersCASigned(t *testing.T) {
	ours, other := apitest.NewCA(t), apitest.NewCA(t)
	renewed := ours.Renew(t) // the same key
	for sentence, tc := range map[string]struct {
		ca    []byte
		cert  tls.Certificate
		state apiserver.State
		kind  apiserver.Kind
	}{
		"a certificate of the CA":                             {ours.PEM, ours.Server(t, apitest.Names...), apiserver.Live, apiserver.KindNone},
		"one for the address alone":                           {ours.PEM, ours.Server(t, "10.99.0.1"), apiserver.Live, apiserver.KindNone},
		"one of another CA":                                   {ours.PEM, other.Server(t, apitest.Names...), apiserver.Dead, apiserver.KindTLS},
		"one of the second CA of a bundle":                    {slices.Concat(other.PEM, ours.PEM), ours.Server(t, apitest.Names...), apiserver.Live, apiserver.KindNone},
		"one of the renewed CA, by the former certificate":    {ours.PEM, renewed.Server(t, apitest.Names...), apiserver.Live, apiserver.KindNone},
		"one of the former CA, by the renewed certificate":    {renewed.PEM, ours.Server(t, apitest.Names...), apiserver.Live, apiserver.KindNone},
		"one of the CA that names no API server":              {ours.PEM, ours.Server(t, "etcd.example"), apiserver.Dead, apiserver.KindTLS},
		"one that has expired is ours, and cannot be used":    {ours.PEM, ours.ServerAt(t, time.Now().Add(-48*time.Hour), apitest.Names...), apiserver.NotReady, apiserver.KindExpired},
		"one that a slow clock takes for a future one is too": {ours.PEM, ours.ServerAt(t, time.Now().Add(24*time.Hour), apitest.Names...), apiserver.NotReady, apiserver.KindExpired},
		"an expired one of another CA is not ours":            {ours.PEM, other.ServerAt(t, time.Now().Add(-48*time.Hour), apitest.Names...), apiserver.Dead, apiserver.KindTLS},
	} {
		t.Run(sentence, func(t *testing.T) {
			e := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.1:0", tc.cert, apitest.AnswersOK)}
			for _, strength := range []Strength{Verified, Ready} {
				r := Endpoints(t.Context(), []apiserver.Endpoint{e}, Config{Strength: strength, Timeout: 5 * time.Second, Trust: &apiserver.Trust{CA: tc.ca}})[0]
				if r.State != tc.state || r.Kind != tc.kind || r.Verified != (tc.state != apiserver.Dead) {
					t.Errorf("%s: %+v", strength, r)
				}
			}
			c := NewChecker(e, Config{Timeout: 5 * time.Second, Trust: &apiserver.Trust{CA: tc.ca}})
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
	trust := &apiserver.Trust{Host: "api.example", HostCA: public.PEM}
	own := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.1:0", public.Server(t, "api.example"), apitest.AnswersOK)}
	own.Host = "api.example"
	unknown := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.2:0", public.Server(t, "evil.example"), apitest.AnswersOK)}
	unknown.Host = "api.example"
	elsewhere := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.3:0", public.Server(t, apitest.Names...), apitest.AnswersOK)}
	for _, r := range Endpoints(t.Context(), []apiserver.Endpoint{own, unknown, elsewhere}, Config{Strength: Verified, Timeout: 5 * time.Second, Trust: trust}) {
		want := map[apiserver.Endpoint]struct {
			state    apiserver.State
			verified bool
		}{own: {apiserver.Live, true}, unknown: {apiserver.Dead, false}, elsewhere: {apiserver.Live, false}}[r.Endpoint]
		if r.State != want.state || r.Verified != want.verified {
			t.Errorf("got %+v, want %+v", r, want)
		}
	}
}

// The kubelet trusts its load balancer by the host's store, and pods trust the API servers behind it by the cluster's CA.
func TestTrustOfTheHostCountsBesideTheCA(t *testing.T) {
	cluster, public := apitest.NewCA(t), apitest.NewCA(t)
	trust := &apiserver.Trust{CA: cluster.PEM, Host: "api.example", HostCA: public.PEM}
	balancer := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.1:0", public.Server(t, "api.example"), apitest.AnswersOK)}
	balancer.Host = "api.example"
	behind := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.2:0", cluster.Server(t, apitest.Names...), apitest.AnswersOK)}
	unknown := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.3:0", public.Server(t, "api.example"), apitest.AnswersOK)}
	for _, r := range Endpoints(t.Context(), []apiserver.Endpoint{balancer, behind, unknown}, Config{Strength: Verified, Timeout: 5 * time.Second, Trust: trust}) {
		if want := r.Endpoint != unknown; r.Verified != want || (r.State == apiserver.Live) != want {
			t.Errorf("got %+v, want verified: %t", r, want)
		}
	}
}
