// Package apitest is an API server for tests: real TLS on a real socket, with
// a small cluster behind it that it really looks things up in, and that tells
// a kubelet, kube-proxy, an administrator and anybody apart as the node
// authorizer and the default roles of Kubernetes 1.36 do (docs/discovery.md).
// Only tests import it.
package apitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"
)

// CA is a certificate authority.
type CA struct {
	PEM  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	return newCA(t, newKey(t))
}

// Renew makes another certificate for the same key.
func (ca *CA) Renew(t testing.TB) *CA {
	t.Helper()
	return newCA(t, ca.key)
}

// CrossSign gives a certificate (PEM) of another authority's key, signed by ca.
func (ca *CA) CrossSign(t testing.TB, other *CA) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, other.cert, ca.cert, other.cert.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newCA(t testing.TB, key *ecdsa.PrivateKey) *CA {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "kubernetes"},
		NotBefore: time.Now().Add(-72 * time.Hour), NotAfter: time.Now().Add(72 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: cert, key: key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// leaf signs a certificate; names may be DNS names and addresses.
func (ca *CA) leaf(t testing.TB, subject pkix.Name, usage x509.ExtKeyUsage, from time.Time, names []string) (cert, key []byte) {
	t.Helper()
	k := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject,
		NotBefore: from, NotAfter: from.Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &k.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb})
}

// Server gives a serving certificate for the names.
func (ca *CA) Server(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	return ca.ServerAt(t, time.Now().Add(-time.Hour), names...)
}

// ServerAt gives one that is valid for a day from then on.
func (ca *CA) ServerAt(t testing.TB, from time.Time, names ...string) tls.Certificate {
	t.Helper()
	c, k := ca.leaf(t, pkix.Name{CommonName: "kube-apiserver"}, x509.ExtKeyUsageServerAuth, from, names)
	cert, err := tls.X509KeyPair(c, k)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Client gives a client certificate and its key (PEM).
func (ca *CA) Client(t testing.TB, user string, groups ...string) (cert, key []byte) {
	t.Helper()
	return ca.leaf(t, pkix.Name{CommonName: user, Organization: groups}, x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Hour), nil)
}

// Kubeconfig gives a kubeconfig with everything inline, as kubeadm and k3s
// write theirs.
func (ca *CA) Kubeconfig(t testing.TB, server, user string, groups ...string) string {
	t.Helper()
	cert, key := ca.Client(t, user, groups...)
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster:
    certificate-authority-data: %s
    server: %s
users:
- name: %[3]s
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: %[3]s@kubernetes
  context:
    cluster: kubernetes
    user: %[3]s
current-context: %[3]s@kubernetes
`, b64(ca.PEM), server, user, b64(cert), b64(key))
}
