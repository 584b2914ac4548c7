package sources

import (
	"fmt"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestHostTrustStore(t *testing.T) {
	a, b := string(apitest.NewCA(t).PEM), string(apitest.NewCA(t).PEM)
	for sentence, tc := range map[string]struct {
		files files
		want  string
	}{
		"Debian's bundle":                 {files{"/etc/ssl/certs/ca-certificates.crt": a}, a},
		"Fedora's bundle":                 {files{"/etc/pki/tls/certs/ca-bundle.crt": a}, a},
		"Alpine's bundle":                 {files{"/etc/ssl/cert.pem": a}, a},
		"SUSE's bundle":                   {files{"/etc/ssl/ca-bundle.pem": a}, a},
		"the first bundle only":           {files{"/etc/ssl/certs/ca-certificates.crt": a, "/etc/ssl/cert.pem": b}, a},
		"a certificate beside the bundle": {files{"/etc/ssl/certs/ca-certificates.crt": a, "/etc/ssl/certs/mine.pem": b}, a + b},
		"a directory without a bundle":    {files{"/etc/ssl/certs/one.crt": a, "/etc/ssl/certs/README": "x"}, a},
		"no store":                        {files{"/etc/hosts": ""}, ""},
	} {
		root := t.TempDir()
		for p, content := range tc.files {
			apitest.Write(t, root, p, content)
		}
		if got := hostTrustStore(root); !slices.Equal((&apiserver.Trust{CA: got}).Fingerprints(), (&apiserver.Trust{CA: []byte(tc.want)}).Fingerprints()) {
			t.Errorf("%s: %d certificates, want those of %d bytes", sentence, len(got), len(tc.want))
		}
	}
}

func TestLoadKubeconfigTakesTheHostsTrustStore(t *testing.T) {
	ca := string(apitest.NewCA(t).PEM)
	const plain = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://lb.example'%s}}]\nusers: [{name: u, user: {token: t}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"
	for sentence, tc := range map[string]struct {
		more string
		want bool
	}{
		"no CA":             {"", true},
		"a CA of its own":   {", certificate-authority-data: Y2E=", false},
		"without verifying": {", insecure-skip-tls-verify: true", false},
	} {
		root := t.TempDir()
		apitest.Write(t, root, "/etc/ssl/certs/ca-certificates.crt", ca)
		apitest.Write(t, root, "/k", fmt.Sprintf(plain, tc.more))
		c, err := LoadKubeconfig(root, "/k")
		if err != nil {
			t.Fatal(err)
		}
		if got := len(c.hostCA) > 0; got != tc.want {
			t.Errorf("%s: the host's store counts: %v", sentence, got)
		}
	}
}
