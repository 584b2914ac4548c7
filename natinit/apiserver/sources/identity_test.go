package sources

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestDecideFollowsTheKubelet(t *testing.T) {
	a, b := apitest.NewCA(t).PEM, apitest.NewCA(t).PEM
	const own, other = "https://10.0.0.1:6443", "https://10.0.0.2:6443"
	type files map[string]string
	for sentence, tc := range map[string]struct {
		files     files
		saved     []byte
		pod       []byte
		by        string
		ca        []byte
		endpoints string
		creds     string
	}{
		"admin.conf of another cluster is used for nothing": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b)},
			by:    "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443", creds: "/etc/kubernetes/kubelet.conf"},
		"admin.conf of this cluster is": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/etc/kubernetes/admin.conf": apitest.Pinned(other, a)},
			by:    "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443 10.0.0.2:6443", creds: "/etc/kubernetes/kubelet.conf /etc/kubernetes/admin.conf"},
		"in a rotation, bundles that overlap are of one cluster": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, slices.Concat(b, a)), "/etc/kubernetes/admin.conf": apitest.Pinned(other, a)},
			by:    "/etc/kubernetes/kubelet.conf", ca: slices.Concat(b, a), endpoints: "10.0.0.1:6443 10.0.0.2:6443", creds: "/etc/kubernetes/kubelet.conf /etc/kubernetes/admin.conf"},
		"a kubelet's certificate that is missing does not hand the decision on": {
			files: files{"/etc/kubernetes/kubelet.conf": strings.Replace(apitest.Pinned(own, a), "{token: t}", "{client-certificate: /var/lib/kubelet/pki/none.pem, client-key: /var/lib/kubelet/pki/none.pem}", 1),
				"/etc/kubernetes/admin.conf": apitest.Pinned(other, b)},
			by: "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443"},
		"nor does its CA file": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Without(apitest.Pinned(own, a), "certificate-authority: /none/ca.crt"), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b)},
			by:    "/etc/kubernetes/kubelet.conf", endpoints: "10.0.0.1:6443"},
		"which the installation keeps, too": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Without(apitest.Pinned(own, a), "certificate-authority: /none/ca.crt"), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b), "/etc/kubernetes/pki/ca.crt": string(a)},
			by:    "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443"},
		"or an earlier run has saved": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Without(apitest.Pinned(own, a), "certificate-authority: /none/ca.crt"), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b)}, saved: a,
			by: "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443"},
		"a kubelet that verifies nothing leaves no other file to decide": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Without(apitest.Pinned(own, a), "insecure-skip-tls-verify: true"), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b)},
			by:    "/etc/kubernetes/kubelet.conf", endpoints: "10.0.0.1:6443", creds: "/etc/kubernetes/kubelet.conf"},
		"without a kubelet's file, what was saved decides": {
			files: files{"/etc/kubernetes/admin.conf": apitest.Pinned(other, b)}, saved: a,
			by: "the saved addresses", ca: a},
		"without anything else, admin.conf does": {
			files: files{"/etc/kubernetes/admin.conf": apitest.Pinned(other, b)},
			by:    "/etc/kubernetes/admin.conf", ca: b, endpoints: "10.0.0.2:6443", creds: "/etc/kubernetes/admin.conf"},
		"the pod decides before what was saved": {
			files: files{"/etc/kubernetes/admin.conf": apitest.Pinned(other, b)}, saved: a, pod: b,
			by: "pod", ca: b, endpoints: "10.0.0.2:6443", creds: "/etc/kubernetes/admin.conf pod"},
		"a pod of a virtual cluster does not": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a)}, pod: b,
			by: "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443", creds: "/etc/kubernetes/kubelet.conf"},
		"of two kubelets' files, the one of the pod's cluster": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/var/lib/rancher/k3s/agent/kubelet.kubeconfig": apitest.Pinned(other, b)}, pod: b,
			by: "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", ca: b, endpoints: "10.0.0.2:6443", creds: "/var/lib/rancher/k3s/agent/kubelet.kubeconfig pod"},
		"what a former installation has left is used for nothing, its Service IP included": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/var/lib/rancher/k3s/agent/kubelet.kubeconfig": apitest.Pinned(other, b),
				"/etc/rancher/k3s/config.yaml": "service-cidr: 10.50.0.0/16\nnode-ip: 10.0.0.9\n", "/var/lib/rancher/k3s/server/token": "t"},
			by: "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443", creds: "/etc/kubernetes/kubelet.conf"},
		"a manifest beside a foreign admin.conf is the node's own": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/etc/kubernetes/admin.conf": apitest.Pinned(other, b), "/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.0.0/12")},
			by:    "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443 10.0.0.11:6443", creds: "/etc/kubernetes/kubelet.conf"},
		"an address that an own file gives too stays": {
			files: files{"/etc/kubernetes/kubelet.conf": apitest.Pinned(own, a), "/etc/kubernetes/admin.conf": apitest.Pinned("https://10.0.0.11:6443", b), "/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.0.0/12")},
			by:    "/etc/kubernetes/kubelet.conf", ca: a, endpoints: "10.0.0.1:6443 10.0.0.11:6443", creds: "/etc/kubernetes/kubelet.conf"},
	} {
		t.Run(sentence, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range tc.files {
				apitest.Write(t, root, path, content)
			}
			old := time.Now().Add(-24 * time.Hour) // a file's age says nothing
			if err := os.Chtimes(filepath.Join(root, tc.by), old, old); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			findings := Files(root)
			if tc.pod != nil {
				findings = append(findings, Finding{Source: apiserver.SourcePod, Credentials: []*Credential{{Path: "pod", ca: tc.pod}},
					Clusters: []ClusterRef{{Path: "pod", Authority: AuthorityPod, CA: tc.pod}}})
			}
			var saved *apiserver.Known
			if tc.saved != nil {
				saved = &apiserver.Known{CA: tc.saved}
			}
			id, findings := Decide(findings, saved)
			var endpoints, creds []string
			for _, f := range findings {
				endpoints = append(endpoints, apitest.Strings(f.Endpoints)...)
				for _, c := range f.Credentials {
					creds = append(creds, c.Path)
				}
				if len(f.Services) > 0 && f.Source != apiserver.SourceKubeadm {
					t.Errorf("%s gives the Service IPs %v", f.Source, f.Services)
				}
			}
			var ca []byte
			if id.Trust != nil {
				ca = id.Trust.CA
			}
			if id.By != tc.by || string(ca) != string(tc.ca) {
				t.Errorf("decided by %q, CA is the wanted one: %t", id.By, string(ca) == string(tc.ca))
			}
			if got := strings.Join(endpoints, " "); got != tc.endpoints {
				t.Errorf("endpoints %q, want %q", got, tc.endpoints)
			}
			if got := strings.Join(creds, " "); got != tc.creds {
				t.Errorf("credentials %q, want %q", got, tc.creds)
			}
		})
	}
}

func TestDecideSaysWhatIsOfAnotherCluster(t *testing.T) {
	a, b := apitest.NewCA(t).PEM, apitest.NewCA(t).PEM
	root := t.TempDir()
	apitest.Write(t, root, "/etc/kubernetes/kubelet.conf", apitest.Pinned("https://10.0.0.1:6443", a))
	apitest.Write(t, root, "/etc/kubernetes/admin.conf", apitest.Pinned("https://10.0.0.2:6443", b))
	id, findings := Decide(Files(root), nil)
	const want = "/etc/kubernetes/admin.conf is of another cluster, and not used: its CA is not the one of /etc/kubernetes/kubelet.conf"
	if !slices.Equal(id.Others, []string{want}) {
		t.Errorf("says %q", id.Others)
	}
	if n := strings.Join(findings[0].Notes, "; "); !strings.Contains(n, "/etc/kubernetes/admin.conf: of another cluster than /etc/kubernetes/kubelet.conf") {
		t.Errorf("notes are %q", n)
	}
}

func TestDecideAKubeconfigWithoutCATrustsTheHostForItsServerAlone(t *testing.T) {
	host := apitest.NewCA(t)
	root := t.TempDir()
	apitest.Write(t, root, "/etc/kubernetes/kubelet.conf", strings.Replace(apitest.Without(apitest.Pinned("https://10.99.0.1:6443", host.PEM), "tls-server-name: \"\""), ", tls-server-name: \"\"", "", 1))
	apitest.Write(t, root, "/etc/ssl/certs/ca-certificates.crt", string(host.PEM))
	id, _ := Decide(Files(root), nil)
	if id.Trust.Known() || !id.Trust.Verifies(apiserver.Endpoint{Addr: netip.MustParseAddrPort("10.99.0.1:6443")}) || id.Trust.Verifies(apiserver.Endpoint{Addr: netip.MustParseAddrPort("10.99.0.2:6443")}) {
		t.Errorf("trust is %+v", id.Trust)
	}
}
