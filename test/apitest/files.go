package apitest

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Write writes a file below root, with its directories.
func Write(t testing.TB, root, path, content string) {
	t.Helper()
	p := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Kubeconfig is one with a token, and a CA that is none.
func Kubeconfig(server string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- {name: local, cluster: {server: "%s", certificate-authority-data: Y2E=}}
users:
- {name: user, user: {token: t}}
contexts:
- {name: Default, context: {cluster: local, user: user}}
current-context: Default
`, server)
}

// Pinned is a kubeconfig that names a CA, by value or, for a path, by file.
func Pinned(server string, ca []byte) string {
	return strings.Replace(Kubeconfig(server), "Y2E=", base64.StdEncoding.EncodeToString(ca), 1)
}

// Without gives a kubeconfig with something else in the place of its CA.
func Without(kubeconfig, with string) string {
	i := strings.Index(kubeconfig, "certificate-authority-data: ")
	j := strings.IndexAny(kubeconfig[i:], "},\n")
	return kubeconfig[:i] + with + kubeconfig[i+j:]
}

// Strings gives the texts of values.
func Strings[T fmt.Stringer](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

// CheckAddr fails for an address that must not come out of any parser.
func CheckAddr(t testing.TB, a netip.AddrPort) {
	t.Helper()
	ip := a.Addr()
	if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || a.Port() == 0 {
		t.Fatalf("accepted %s", a)
	}
}
