package proof

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// Behind the Service IP may be a load balancer whose certificate is one that the host trusts, beside servers with
// certificates of the cluster.
func TestConnectOnceVerifiesTheNameOfTheKubeconfig(t *testing.T) {
	cluster, public := apitest.NewCA(t), apitest.NewCA(t)
	for name, tc := range map[string]struct {
		cert  tls.Certificate
		trust *apiserver.Trust
		want  bool
	}{
		"the balancer, where no CA is known":                    {public.Server(t, "api.example"), &apiserver.Trust{Host: "api.example", HostCA: public.PEM}, true},
		"the balancer, where the CA is known":                   {public.Server(t, "api.example"), &apiserver.Trust{CA: cluster.PEM, Host: "api.example", HostCA: public.PEM}, true},
		"a server behind it":                                    {cluster.Server(t, apitest.Names...), &apiserver.Trust{CA: cluster.PEM, Host: "api.example", HostCA: public.PEM}, true},
		"another name":                                          {public.Server(t, "evil.example"), &apiserver.Trust{CA: cluster.PEM, Host: "api.example", HostCA: public.PEM}, false},
		"a public certificate, where the kubeconfig names a CA": {public.Server(t, "api.example"), &apiserver.Trust{CA: cluster.PEM}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: &tls.Config{Certificates: []tls.Certificate{tc.cert}}, ErrorLog: log.New(io.Discard, "", 0)}
			go srv.ServeTLS(l, "", "")
			defer srv.Close()
			ans := connectOnce(t.Context(), connectRequest{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: true, Trust: tc.trust, Timeout: 10 * time.Second})
			if ans.Verified != tc.want || ans.Foreign == tc.want {
				t.Errorf("%+v, want verified: %t", ans, tc.want)
			}
		})
	}
}
