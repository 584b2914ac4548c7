package dependents

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// host makes files below a root of their own.
func host(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, content := range files {
		at := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func kubeconfig(server string) string {
	return `apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster: {server: "` + server + `"}
contexts:
- name: c
  context: {cluster: kubernetes, user: u}
current-context: c
users: [{name: u, user: {token: t}}]
`
}

const twoClusters = `apiVersion: v1
kind: Config
clusters:
- {name: here, cluster: {server: "https://192.0.2.11:6443"}}
- {name: elsewhere, cluster: {server: "https://10.96.0.1:443"}}
contexts:
- {name: here, context: {cluster: here, user: u}}
- {name: elsewhere, context: {cluster: elsewhere, user: u}}
users: [{name: u, user: {token: t}}]
`

var services = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("[fd00:96::1]:443")}

func TestFind(t *testing.T) {
	const pod = "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~configmap/kube-proxy/kubeconfig.conf"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string // Dependent.String
	}{
		{"kubeadm's files", map[string]string{
			"/etc/kubernetes/kubelet.conf":            kubeconfig("https://10.96.0.1:443"),
			"/etc/kubernetes/bootstrap-kubelet.conf":  kubeconfig("https://10.96.0.1"),
			"/etc/kubernetes/admin.conf":              kubeconfig("https://10.96.0.1:443"),
			"/etc/kubernetes/controller-manager.conf": kubeconfig("https://192.0.2.11:6443"),
			"/etc/kubernetes/scheduler.conf":          kubeconfig("https://10.96.0.1:443/"),
			"/etc/kubernetes/kubelet.conf.bak":        kubeconfig("https://10.96.0.1:443"),
		}, []string{
			"/etc/kubernetes/bootstrap-kubelet.conf (kubelet): https://10.96.0.1",
			"/etc/kubernetes/kubelet.conf (kubelet): https://10.96.0.1:443",
			"/etc/kubernetes/admin.conf (kubectl and kubeadm): https://10.96.0.1:443",
			"/etc/kubernetes/scheduler.conf (kube-scheduler): https://10.96.0.1:443/",
		}},
		{"IPv6", map[string]string{"/var/lib/kubelet/kubeconfig": kubeconfig("https://[fd00:96:0::1]")},
			[]string{"/var/lib/kubelet/kubeconfig (kubelet): https://[fd00:96:0::1]"}},
		{"a name of /etc/hosts", map[string]string{
			"/etc/hosts":                   "127.0.0.1 localhost\n10.96.0.1\tother API.example # ours\n",
			"/etc/kubernetes/kubelet.conf": kubeconfig("https://api.example:443"),
		}, []string{"/etc/kubernetes/kubelet.conf (kubelet): https://api.example:443"}},
		{"a name that is commented out", map[string]string{
			"/etc/hosts":                   "#10.96.0.1 api.example\n192.0.2.11 api.example\n",
			"/etc/kubernetes/kubelet.conf": kubeconfig("https://api.example:443"),
		}, nil},
		{"another port and another address", map[string]string{
			"/etc/kubernetes/kubelet.conf": kubeconfig("https://10.96.0.1:6443"),
			"/var/lib/kubelet/kubeconfig":  kubeconfig("https://10.96.0.10:443"),
		}, nil},
		{"a context that is not in use", map[string]string{
			"/etc/kubernetes/kubelet.conf": twoClusters + "current-context: here\n",
		}, nil},
		{"a context that is in use", map[string]string{
			"/etc/kubernetes/kubelet.conf": twoClusters + "current-context: elsewhere\n",
		}, []string{"/etc/kubernetes/kubelet.conf (kubelet): https://10.96.0.1:443"}},
		{"a kubeconfig that a unit names", map[string]string{
			"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/opt/k/config\n",
			"/opt/k/config":                       kubeconfig("https://10.96.0.1:443"),
		}, []string{"/opt/k/config (kubeconfig): https://10.96.0.1:443"}},
		{"an agent of k3s", map[string]string{
			"/etc/rancher/k3s/config.yaml":                                           "# server: https://10.96.0.1:444\nserver: https://10.96.0.1:443\ntoken: t\n",
			"/etc/systemd/system/k3s-agent.service.env":                              "K3S_URL='https://10.96.0.1'\n",
			"/var/lib/rancher/k3s/agent/etc/k3s-api-server-agent-load-balancer.json": `{"ServerURL":"https://192.0.2.1:6443","ServerAddresses":["192.0.2.1:6443","10.96.0.1:443"]}`,
		}, []string{
			"/etc/rancher/k3s/config.yaml (k3s): https://10.96.0.1:443",
			"/var/lib/rancher/k3s/agent/etc/k3s-api-server-agent-load-balancer.json (k3s): 10.96.0.1:443",
			"/etc/systemd/system/k3s-agent.service.env (k3s-agent): https://10.96.0.1",
		}},
		{"static pods", map[string]string{
			"/etc/kubernetes/manifests/kube-apiserver.yaml": "- --service-cluster-ip-range=10.96.0.0/12\n- --advertise-address=192.0.2.11\n",
			"/etc/kubernetes/manifests/helper.yaml":         "env:\n- name: KUBERNETES_SERVICE_HOST\n  value: \"10.96.0.1\"\n",
			"/var/lib/kubelet/config.yaml":                  "staticPodPath: /opt/pods\nclusterDNS: [10.96.0.10]\n",
			"/opt/pods/proxy.yaml":                          "args: [--master=https://10.96.0.1:443]\n",
		}, []string{
			"/etc/kubernetes/manifests/helper.yaml (static pod): 10.96.0.1",
			"/opt/pods/proxy.yaml (static pod): https://10.96.0.1:443",
		}},
		{"kubeadm's configuration", map[string]string{"/etc/kubernetes/kubeadm-config.yaml": "controlPlaneEndpoint: \"10.96.0.1:443\"\n"},
			[]string{"/etc/kubernetes/kubeadm-config.yaml (kubeadm): 10.96.0.1:443"}},
		{"kube-proxy's ConfigMap", map[string]string{
			pod: kubeconfig("https://10.96.0.1:443"),
			"/var/log/pods/kube-system_kube-proxy-x7k2p_0a1b/kube-proxy/0.log": "",
			"/var/lib/kubelet/pods/0a1b/containers/kube-proxy/6f0e":            "",
		}, []string{pod + " (kube-proxy's ConfigMap): https://10.96.0.1:443"}},
		{"a tenant's pod named kube-proxy", map[string]string{
			pod: kubeconfig("https://10.96.0.1:443"),
			"/var/log/pods/tenant_kube-proxy-x7k2p_0a1b/kube-proxy/0.log": "",
			"/var/lib/kubelet/pods/0a1b/containers/kube-proxy/6f0e":       "",
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, d := range Find(Config{Root: host(t, tc.files), Services: services}) {
				got = append(got, d.String())
			}
			slices.Sort(got)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// TestCommandsChangeTheServer runs what they say, but for restarts.
func TestCommandsChangeTheServer(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.11:6443")
	for name, content := range map[string]string{
		"/etc/kubernetes/kubelet.conf":        kubeconfig("https://10.96.0.1:443"),
		"/var/lib/kubelet/kubeconfig":         kubeconfig("https://[fd00:96::1]:443"),
		"/etc/rancher/k3s/config.yaml":        "server: https://10.96.0.1\n",
		"/etc/kubernetes/manifests/a b.yaml":  "args: [--master=https://10.96.0.1:443]\n",
		"/etc/kubernetes/kubeadm-config.yaml": "controlPlaneEndpoint: 10.96.0.1:443\n",
	} {
		root := host(t, map[string]string{name: content})
		found := Find(Config{Root: root, Services: services})
		if len(found) != 1 {
			t.Fatalf("%s: found %v", name, found)
		}
		d := found[0]
		d.Path = filepath.Join(root, d.Path)
		command := d.Commands(server)[0]
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		if left := Find(Config{Root: root, Services: services}); len(left) > 0 {
			t.Errorf("%s: after %s it is still %v", name, command, left)
		}
		if b, _ := os.ReadFile(d.Path); !strings.Contains(string(b), server.String()) {
			t.Errorf("%s: %s made it\n%s", name, command, b)
		}
	}
}

func TestCommandsNameTheClusterOfSeveral(t *testing.T) {
	root := host(t, map[string]string{"/etc/kubernetes/kubelet.conf": twoClusters + "current-context: elsewhere\n"})
	got := Find(Config{Root: root, Services: services})[0].Commands(netip.MustParseAddrPort("192.0.2.11:6443"))
	want := []string{"kubectl --kubeconfig /etc/kubernetes/kubelet.conf config set-cluster elsewhere --server=https://192.0.2.11:6443", "systemctl restart kubelet"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
