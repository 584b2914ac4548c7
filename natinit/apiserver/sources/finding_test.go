package sources

import (
	"fmt"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestAddKubeconfigReadsTheServer(t *testing.T) {
	with := func(server, cluster, user string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q%s}}]\nusers: [{name: u, user: {%s}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", server, cluster, user)
	}
	const ca, token = ", certificate-authority-data: Y2E=", "token: t"
	for _, tc := range []struct{ sentence, server, cluster, user, want string }{
		{"host and port, with a CA", "10.0.0.1:6443", ca, token, "10.0.0.1:6443"},
		{"a name and a port look like a scheme", "api.example:6443", ca, token, "api.example:6443"},
		{"host alone", "api.example", ca, token, "api.example:443"},
		{"with a client certificate only", "10.0.0.1:6443", "", "client-certificate-data: Y2E=, client-key-data: Y2E=", "10.0.0.1:6443"},
		{"without verification", "10.0.0.1:6443", ", insecure-skip-tls-verify: true", token, "10.0.0.1:6443"},
		{"nothing tells TLS: http, as for client-go", "10.0.0.1:8080", "", token, ""},
		{"no port", "https://api.example", ca, token, "api.example:443"},
		{"an empty port", "https://api.example:", ca, token, "api.example:443"},
		{"capitals", "HTTPS://API.Example:6443", ca, token, "api.example:6443"},
		{"a slash at the end", "https://10.0.0.1:6443/", ca, token, "10.0.0.1:6443"},
		{"IPv6", "https://[fd00::1]:6443", ca, token, "[fd00::1]:6443"},
		{"IPv6 without a port", "https://[fd00::1]", ca, token, "[fd00::1]:443"},
		{"IPv6 without a scheme", "[fd00::1]:6443", ca, token, "[fd00::1]:6443"},
		{"a user in it", "https://u:p@10.0.0.1:6443", ca, token, "10.0.0.1:6443"},
		{"a dot at the end", "https://api.example.:6443", ca, token, "api.example:6443"},
		{"blanks around it", " https://10.0.0.1:6443 ", ca, token, "10.0.0.1:6443"},
		{"zeros before the port", "https://10.0.0.1:06443", ca, token, "10.0.0.1:6443"},
		{"a proxy is no matter", "https://10.0.0.1:6443", ca + ", proxy-url: 'http://p:3128'", token, "10.0.0.1:6443"},
	} {
		root := t.TempDir()
		apitest.Write(t, root, "/etc/kubernetes/kubelet.conf", with(tc.server, tc.cluster, tc.user))
		f := source(t, root, apiserver.SourceKubeadm)
		if c := f.Credentials; tc.want != "" && (len(c) != 1 || !strings.HasPrefix(c[0].Server, "https://")) {
			t.Errorf("%s (%q): its credentials cannot be used: %+v", tc.sentence, tc.server, c)
		}
		if got := strings.Join(apitest.Strings(f.Endpoints), " "); got != tc.want {
			t.Errorf("%s (%q): %q, want %q\n%q", tc.sentence, tc.server, got, tc.want, f.Notes)
		}
	}
}
