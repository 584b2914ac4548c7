package kube

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

const (
	// Dir has everything that is kept from one boot to the next: etcd's data, certificates, kubeconfigs.
	Dir = "/var/lib/vm-kube"
	// Server is the API server's own address, VIP that of default/kubernetes.
	Server = "192.0.2.10:6443"
	VIP    = "10.96.0.1:443"
	// Node is the name of the one Node.
	Node = "node"
	// Kubeconfig is a file with the identity User, who has the rights that somebody binds to it.
	Kubeconfig = Dir + "/firsthop.conf"
	User       = "firsthop-node"
)

// Prepare makes what the units need that are started after it.
func Prepare(t testing.TB) {
	t.Helper()
	must(t, os.MkdirAll(Dir, 0o700))
	ca := apitest.NewCA(t)
	serving := ca.Server(t, append([]string{"192.0.2.10", "10.96.0.1"}, apitest.Names...)...)
	key, err := x509.MarshalECPrivateKey(serving.PrivateKey.(*ecdsa.PrivateKey))
	must(t, err)
	admin, adminKey := ca.Client(t, "admin", "system:masters")
	for name, data := range map[string][]byte{
		"ca.crt":        ca.PEM,
		"tls.key":       pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
		"tls.crt":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: serving.Certificate[0]}),
		"admin.crt":     admin,
		"admin.key":     adminKey,
		"firsthop.conf": []byte(ca.Kubeconfig(t, "https://"+Server, User)),
	} {
		must(t, os.WriteFile(filepath.Join(Dir, name), data, 0o600))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
