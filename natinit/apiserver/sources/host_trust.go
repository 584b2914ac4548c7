package sources

import (
	"bytes"
	"path/filepath"
)

// hostBundles and hostCertDirs are where Go programs, so the kubelet too, look
// for the certificates that a Linux host trusts (crypto/x509, root_linux.go):
// the first bundle that can be read, and every file of the directories.
var (
	hostBundles = [...]string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Arch, Gentoo
		"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
		"/etc/ssl/ca-bundle.pem",                            // SUSE
		"/etc/pki/tls/cacert.pem",                           // OpenELEC
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL
		"/etc/ssl/cert.pem",                                 // Alpine
	}
	hostCertDirs = [...]string{"/etc/ssl/certs", "/etc/pki/tls/certs"}
)

// hostTrustStore reads the certificates (PEM) that the host below root trusts,
// for a kubeconfig that names no CA. This process's own store is no
// replacement: in a container it is the image's, or empty.
func hostTrustStore(root string) []byte {
	var out bytes.Buffer
	for _, p := range hostBundles {
		if b, err := readFile(root, p); err == nil {
			out.Write(b)
			out.WriteByte('\n')
			break
		}
	}
	for _, dir := range hostCertDirs {
		for _, p := range glob(root, filepath.Join(dir, "*")) {
			b, err := readFile(root, p)
			if err == nil && bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----")) && !bytes.Contains(out.Bytes(), bytes.TrimSpace(b)) {
				out.Write(b)
				out.WriteByte('\n')
			}
		}
	}
	return out.Bytes()
}
