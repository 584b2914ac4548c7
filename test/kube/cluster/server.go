package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/apitest"
)

// Server is one API server. It can end and be started again; its methods are not for concurrent use.
type Server struct {
	Address netip.AddrPort
	*Process

	c    *Cluster
	name string
	args []string
}

// newServer prepares the API server with a number, which is given its address.
func (c *Cluster) newServer(i int, flags []string) *Server {
	addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})
	s := &Server{Address: netip.AddrPortFrom(addr, serverPort), c: c, name: fmt.Sprintf("kube-apiserver-%d", i)}
	c.must(c.Hub.AddAddr(addr.String() + "/32"))
	dir := filepath.Join(c.Hub.Dir, s.name)
	c.must(os.Mkdir(dir, 0o700))
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		c.must(os.WriteFile(path, content, 0o600))
		return path
	}
	cert, key := c.serverCertificate(addr)
	certFile, keyFile := write("tls.crt", cert), write("tls.key", key)
	// All servers sign and accept ServiceAccount tokens with the key of the first one.
	accounts := filepath.Join(c.Hub.Dir, "kube-apiserver-0", "tls.key")
	s.args = append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + addr.String(), "--advertise-address=" + addr.String(), fmt.Sprintf("--secure-port=%d", serverPort),
		"--cert-dir=" + dir, "--client-ca-file=" + write("ca.crt", c.ca.PEM),
		"--tls-cert-file=" + certFile, "--tls-private-key-file=" + keyFile,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + accounts, "--service-account-signing-key-file=" + accounts,
		"--service-cluster-ip-range=" + join(ServiceCIDRs),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--disable-admission-plugins=ServiceAccount", // wants accounts that only a controller makes
		"--allow-privileged=true",
	}, flags...)
	return s
}

func join(prefixes []netip.Prefix) string {
	var list []string
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return strings.Join(list, ",")
}

// serverCertificate is valid for the address, the Service IP and the usual names.
func (c *Cluster) serverCertificate(addr netip.Addr) (cert, key []byte) {
	names := append([]string{addr.String(), ServiceIP.String(), "fd00:96::1"}, apitest.Names...)
	tlsCert := c.ca.Server(c.t, names...)
	der, err := x509.MarshalECPrivateKey(tlsCert.PrivateKey.(*ecdsa.PrivateKey))
	c.must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsCert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// Start starts the server again after it ended, and waits until it is ready.
func (s *Server) Start() {
	s.c.t.Helper()
	s.launch()
	s.AwaitReady()
}

func (s *Server) launch() {
	s.c.t.Helper()
	s.Process = s.c.start(s.c.Hub, s.name, s.c.programs.APIServer, s.args...)
}

// AwaitReady waits until the server says that it is ready.
func (s *Server) AwaitReady() {
	s.c.t.Helper()
	client := s.c.httpClient(Admin)
	defer client.CloseIdleConnections()
	s.c.await("wait for "+s.name, func(ctx context.Context) error {
		if err := s.ended(); err != nil {
			s.c.t.Fatal(err) // it will not come back
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		return nil
	})
}

// awaitAdvertised waits until the server is an endpoint of default/kubernetes, which it writes a moment after it is
// ready.
func (s *Server) awaitAdvertised() {
	s.c.t.Helper()
	s.c.await("wait for the endpoint of "+s.name, func(ctx context.Context) error {
		list, err := s.c.Client.DiscoveryV1().EndpointSlices("default").List(ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
		if err != nil {
			return err
		}
		for i := range list.Items {
			for _, ep := range list.Items[i].Endpoints {
				if slices.Contains(ep.Addresses, s.Address.Addr().String()) {
					return nil
				}
			}
		}
		return errors.New("default/kubernetes does not have it")
	})
}

// URL is where the server listens.
func (s *Server) URL() string { return "https://" + s.Address.String() }

// Vanish makes the server's address answer nothing, as if its machine had lost its power: packets to it get lost. The
// process goes on, and still reaches etcd.
func (s *Server) Vanish() {
	s.c.t.Helper()
	s.c.must(s.c.Hub.DelAddr(s.prefix()))
	s.c.must(s.c.Hub.Drop(s.prefix()))
}

// Appear takes back Vanish.
func (s *Server) Appear() {
	s.c.t.Helper()
	s.c.must(s.c.Hub.Undrop(s.prefix()))
	s.c.must(s.c.Hub.AddAddr(s.prefix()))
}

func (s *Server) prefix() string {
	a := s.Address.Addr()
	return netip.PrefixFrom(a, a.BitLen()).String()
}
