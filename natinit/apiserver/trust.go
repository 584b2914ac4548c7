package apiserver

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Trust says which certificates an API server of this node's cluster may have.
// The zero value, and nil, know of none: nothing can be verified.
type Trust struct {
	// CA holds the cluster's CA certificates (PEM). A certificate that one of
	// them signed may have any of an API server's names.
	CA []byte `json:"ca,omitempty"`
	// Host is the name or address in a kubeconfig that names no CA, and
	// HostCA the certificates that the host trusts (PEM). Anybody can get a
	// certificate from those for a name of his own, so it counts for Host alone.
	Host   string `json:"host,omitempty"`
	HostCA []byte `json:"host_ca,omitempty"`
}

// Known reports whether the cluster's own CA is known, so that every one of
// its API servers can be verified.
func (t *Trust) Known() bool { return t != nil && len(Certificates(t.CA)) > 0 }

// Verifies reports whether a certificate at this endpoint can be judged.
func (t *Trust) Verifies(e Endpoint) bool { return t.Known() || t.hostVerifies(e) }

// Equal reports whether two verify the same.
func (t *Trust) Equal(o *Trust) bool {
	if t == nil || o == nil {
		return t == o
	}
	return bytes.Equal(t.CA, o.CA) && t.Host == o.Host && bytes.Equal(t.HostCA, o.HostCA)
}

func (t *Trust) hostVerifies(e Endpoint) bool {
	if t == nil || t.Host == "" || len(t.HostCA) == 0 {
		return false
	}
	return strings.EqualFold(e.Host, t.Host) || e.Resolved() && e.Addr.Addr().String() == t.Host
}

// Fingerprints are those of the CA's keys, sorted. They outlive a renewal with
// the same key, and a cross-signature.
func (t *Trust) Fingerprints() []string {
	if t == nil {
		return nil
	}
	return keyFingerprints(t.CA)
}

// SameCA reports whether two sets of CA certificates (PEM) are of one cluster:
// whether they have a key in common, as the bundles of a rotation do.
func SameCA(a, b []byte) bool {
	have := keyFingerprints(a)
	return slices.ContainsFunc(keyFingerprints(b), func(k string) bool { return slices.Contains(have, k) })
}

func keyFingerprints(bundle []byte) []string {
	var out []string
	for _, c := range Certificates(bundle) {
		h := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		out = append(out, hex.EncodeToString(h[:]))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Certificates reads the certificates of a bundle, without those that cannot
// be read.
func Certificates(bundle []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return out
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
}

func pool(bundle []byte) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range Certificates(bundle) {
		p.AddCert(c)
	}
	return p
}

// Verdict is what a handshake told of the server.
type Verdict struct {
	Verified bool
	// expired is why a certificate of the cluster is not valid now.
	Expired error
	// leaf is the server's certificate, once it is verified.
	Leaf *x509.Certificate
}

// Verifier gives crypto/tls's VerifyConnection for an endpoint, nil if its
// certificate cannot be judged. names are accepted beside those of the
// endpoint. What it finds goes into v, unless that is nil.
func (t *Trust) Verifier(e Endpoint, v *Verdict, names ...string) func(tls.ConnectionState) error {
	type anchor struct {
		roots *x509.CertPool
		names []string
	}
	var anchors []anchor
	if t.Known() {
		anchors = append(anchors, anchor{pool(t.CA), append(certNames(e), names...)})
	}
	if t.hostVerifies(e) { // beside the CA: a load balancer may have another certificate than the servers behind it
		anchors = append(anchors, anchor{pool(t.HostCA), []string{t.Host}})
	}
	if len(anchors) == 0 {
		return nil
	}
	return func(cs tls.ConnectionState) error {
		var failed error
		for _, a := range anchors {
			expired, err := verifyAny(a.roots, a.names, cs)
			if err == nil {
				if v != nil {
					v.Verified, v.Expired, v.Leaf = true, expired, cs.PeerCertificates[0]
				}
				return nil
			}
			if failed == nil {
				failed = err
			}
		}
		return failed
	}
}

// verifyAny verifies the chain as crypto/tls would, but accepts a certificate
// for any of several names. One that the roots signed but that is not valid at
// this time is returned in expired: at boot the clock of a node without a
// battery is years behind, which makes no other cluster of it.
func verifyAny(roots *x509.CertPool, names []string, cs tls.ConnectionState) (expired, err error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("server sent no certificate")
	}
	leaf := cs.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	fail := func(err error) error {
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	if _, err := leaf.Verify(opts); err != nil {
		var invalid x509.CertificateInvalidError
		if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			return nil, fail(err)
		}
		opts.CurrentTime = leaf.NotBefore.Add(time.Second) // the CA was valid when it signed
		if _, again := leaf.Verify(opts); again != nil {
			return nil, fail(err)
		}
		expired = fmt.Errorf("its certificate is valid from %s to %s, and the clock of this node says %s",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}
	var last error
	for _, n := range names {
		if last = leaf.VerifyHostname(n); last == nil {
			return expired, nil
		}
	}
	return nil, fail(last)
}

// certNames are the names that an API server's certificate may have for this
// endpoint. kubernetes.default.svc is in every one (kubeadm, k3s, RKE2,
// MicroK8s and the clouds put it there for in-cluster clients), while the
// address of one of several servers often is not.
func certNames(e Endpoint) []string {
	names := []string{"kubernetes.default.svc", "kubernetes"}
	if e.Resolved() {
		names = append(names, e.Addr.Addr().String())
	}
	if e.Host != "" {
		names = append(names, e.Host)
	}
	return names
}
