package sources

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/nodeconf"
	"github.com/firsthop/firsthop/test/apitest"
)

// manifest is what kubeadm 1.36 writes, without what does not count.
const manifest = `apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: 10.0.0.11:6443
  labels: {component: kube-apiserver, tier: control-plane}
  name: kube-apiserver
  namespace: kube-system
spec:
  containers:
  - command:
    - kube-apiserver
    - --advertise-address=10.0.0.11
    - --allow-privileged=true
    - --authorization-mode=Node,RBAC
    - --secure-port=6443
    - --service-account-issuer=https://kubernetes.default.svc.cluster.local
    - --service-cluster-ip-range=%s
    image: registry.k8s.io/kube-apiserver:v1.36.3
    name: kube-apiserver
  hostNetwork: true
`

func source(t *testing.T, root string, s apiserver.Source) Finding {
	t.Helper()
	for _, f := range (testHost(root)).sources() {
		if f.Source == s {
			return f
		}
	}
	t.Fatalf("no source %s", s)
	return Finding{}
}

// testHost is a host whose own address is not known, as a test's machine must
// not show in results.
func testHost(root string) *host {
	h := newHost(root)
	h.address = func() (netip.Addr, bool) { return netip.Addr{}, false }
	return h
}

type files map[string]string

// sourceCase is a node's files and what a source finds in them.
type sourceCase struct {
	files     files
	source    apiserver.Source
	services  []string
	endpoints []string
	helpers   []string
	creds     []string
	notes     []string // parts of the notes
}

func runSourceCases(t *testing.T, cases map[string]sourceCase) {
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for p, content := range tc.files {
				apitest.Write(t, root, p, content)
			}
			f := source(t, root, tc.source)
			check := func(what string, got, want []string) {
				if !slices.Equal(got, want) {
					t.Errorf("%s: got %q, want %q\nnotes %q", what, got, want, f.Notes)
				}
			}
			var creds []string
			for _, c := range f.Credentials {
				creds = append(creds, c.Path)
			}
			check("services", apitest.Strings(f.Services), tc.services)
			check("endpoints", apitest.Strings(f.Endpoints), tc.endpoints)
			check("helpers", apitest.Strings(f.Helpers), tc.helpers)
			check("credentials", creds, tc.creds)
			notes := strings.Join(f.Notes, "\n")
			for _, n := range tc.notes {
				if !strings.Contains(notes, n) {
					t.Errorf("notes lack %q:\n%s", n, notes)
				}
			}
			if notes == "" || strings.Contains(notes, root) {
				t.Errorf("notes are not for people: %q", notes)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	const (
		kubeadmUnit = "[Service]\nEnvironment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS\n"
		ownUnit     = "# --kubeconfig=/not/this\n[Service]\nExecStart=/usr/bin/kubelet \\\n  --config=/etc/k.yaml \\\n  --kubeconfig /srv/k/kubelet.conf\n"
	)
	runSourceCases(t, map[string]sourceCase{
		"kubeadm, worker": {
			files{"/etc/kubernetes/kubelet.conf": apitest.Kubeconfig("https://api.example:6443")},
			apiserver.SourceKubeadm, nil, []string{"api.example:6443"}, nil, []string{"/etc/kubernetes/kubelet.conf"}, []string{"server api.example:6443"}},
		"kubeadm, control plane": {
			files{"/etc/kubernetes/kubelet.conf": apitest.Kubeconfig("https://10.0.0.10:6443"), "/etc/kubernetes/admin.conf": apitest.Kubeconfig("https://10.0.0.10:6443"),
				"/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.0.0/12")},
			apiserver.SourceKubeadm, []string{"10.96.0.1:443"}, []string{"10.0.0.10:6443", "10.0.0.11:6443"}, nil,
			[]string{"/etc/kubernetes/kubelet.conf", "/etc/kubernetes/admin.conf"}, []string{"service range 10.96.0.0/12", "an API server on this node, 10.0.0.11:6443"}},
		"kubeadm, dual stack: the Service default/kubernetes has the first family only": {
			files{"/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "fd00:96::/112,10.96.0.0/12")},
			apiserver.SourceKubeadm, []string{"[fd00:96::1]:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
		"kubeadm, a range whose base is not its first address": {
			files{"/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.7.9/12")},
			apiserver.SourceKubeadm, []string{"10.96.0.1:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
		"kubeadm, a range without a first address": {
			files{"/etc/kubernetes/manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.0.1/32")},
			apiserver.SourceKubeadm, nil, []string{"10.0.0.11:6443"}, nil, nil, []string{"no usable first address"}},
		"kubeadm, joining": {
			files{"/etc/kubernetes/bootstrap-kubelet.conf": apitest.Kubeconfig("https://10.0.0.10:6443")},
			apiserver.SourceKubeadm, nil, []string{"10.0.0.10:6443"}, nil, []string{"/etc/kubernetes/bootstrap-kubelet.conf"}, nil},
		"kubeadm, a local balancer": {
			files{"/etc/kubernetes/kubelet.conf": apitest.Kubeconfig("https://localhost:8443")},
			apiserver.SourceKubeadm, nil, nil, []string{"localhost:8443"}, []string{"/etc/kubernetes/kubelet.conf"}, []string{"on loopback, used only to ask"}},
		"kubeadm, a kubeconfig that is cut": {
			files{"/etc/kubernetes/kubelet.conf": "apiVersion: v1\nclusters: [", "/etc/kubernetes/manifests/kube-apiserver.yaml": "{{"},
			apiserver.SourceKubeadm, nil, nil, nil, nil, []string{"not a kubeconfig", "not a pod manifest"}},
		"kubeadm, nothing": {files{}, apiserver.SourceKubeadm, nil, nil, nil, nil, []string{"no kubeadm files in /etc/kubernetes"}},
		"kubelet, as in the clouds": {
			files{"/var/lib/kubelet/kubeconfig": apitest.Kubeconfig("https://ABCD.gr7.us-west-2.eks.example")},
			apiserver.SourceKubelet, nil, []string{"abcd.gr7.us-west-2.eks.example:443"}, nil, []string{"/var/lib/kubelet/kubeconfig"}, nil},
		"kubelet, Talos: the address is a proxy of the node": {
			files{"/etc/kubernetes/kubeconfig-kubelet": apitest.Kubeconfig("https://127.0.0.1:7445")},
			apiserver.SourceKubelet, nil, nil, []string{"127.0.0.1:7445"}, []string{"/etc/kubernetes/kubeconfig-kubelet"}, []string{"loopback"}},
		"kubelet, a unit with a kubeconfig elsewhere": {
			files{"/etc/systemd/system/kubelet.service": ownUnit, "/srv/k/kubelet.conf": apitest.Kubeconfig("https://10.0.0.3:6443")},
			apiserver.SourceKubelet, nil, []string{"10.0.0.3:6443"}, nil, []string{"/srv/k/kubelet.conf"}, nil},
		"kubelet, kubeadm's own drop-in is kubeadm's": {
			files{"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": kubeadmUnit, "/etc/kubernetes/kubelet.conf": apitest.Kubeconfig("https://10.0.0.3:6443")},
			apiserver.SourceKubelet, nil, nil, nil, nil, []string{"no kubelet's kubeconfig"}},
		"kubelet, a running one": {
			files{"/proc/77/cgroup": "0::/system.slice/kubelet.service\n", "/proc/77/status": "Name:\tkubelet\nPPid:\t1\nUid:\t0\t0\t0\t0\nNSpid:\t77\n", "/proc/77/cmdline": "/bin/kubelet\x00--v=2\x00--kubeconfig=/opt/k.conf\x00", "/opt/k.conf": apitest.Kubeconfig("https://10.0.0.4:6443")},
			apiserver.SourceKubelet, nil, []string{"10.0.0.4:6443"}, nil, []string{"/opt/k.conf"}, nil},
		"kubelet, a process of a user that calls itself so": {
			files{"/proc/77/comm": "kubelet\n", "/proc/77/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/kubelet.service\n", "/proc/77/status": "Name:\tkubelet\nPPid:\t1\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t77\n",
				"/proc/77/cmdline": "kubelet\x00--kubeconfig=/opt/k.conf\x00", "/opt/k.conf": apitest.Kubeconfig("https://10.0.0.4:6443")},
			apiserver.SourceKubelet, nil, nil, nil, nil, []string{"no kubelet's kubeconfig"}},
		"a server with a path cannot be an endpoint": {
			files{"/var/lib/kubelet/kubeconfig": apitest.Kubeconfig("https://rancher.example/k8s/clusters/c-1")},
			apiserver.SourceKubelet, nil, nil, []string{"rancher.example:443"}, []string{"/var/lib/kubelet/kubeconfig"}, []string{"has a path"}},
		"a server without TLS": {
			files{"/var/lib/kubelet/kubeconfig": apitest.Kubeconfig("http://10.0.0.1:8080")},
			apiserver.SourceKubelet, nil, nil, nil, []string{"/var/lib/kubelet/kubeconfig"}, []string{"is not https"}},
		"k3s, agent": {
			files{"/var/lib/rancher/k3s/agent/kubelet.kubeconfig": apitest.Kubeconfig("https://127.0.0.1:6444"),
				"/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerURL":"https://k3s.example:6443","ServerAddresses":["192.168.1.111:6443","192.168.1.112:6443"],"Listener":null}`},
			apiserver.SourceK3s, nil, []string{"192.168.1.111:6443", "192.168.1.112:6443", "k3s.example:6443"}, []string{"127.0.0.1:6444"},
			[]string{"/var/lib/rancher/k3s/agent/kubelet.kubeconfig"}, []string{"loopback", "2 servers"}},
		"k3s, agent from the installer, not started": {
			files{"/etc/systemd/system/k3s-agent.service.env": "K3S_TOKEN='x'\nK3S_URL='https://10.1.0.1:6443'\n"},
			apiserver.SourceK3s, nil, []string{"10.1.0.1:6443"}, nil, nil, nil},
		"k3s, server with defaults": {
			files{"/etc/rancher/k3s/k3s.yaml": apitest.Kubeconfig("https://127.0.0.1:6443"), "/var/lib/rancher/k3s/server/token": "t"},
			apiserver.SourceK3s, []string{"10.43.0.1:443"}, nil, []string{"127.0.0.1:6443"}, []string{"/etc/rancher/k3s/k3s.yaml"}, []string{"the default of k3s"}},
		"k3s, server with a configuration": {
			files{"/etc/rancher/k3s/config.yaml": "service-cidr: 10.50.0.0/16,fd00:50::/112\nnode-ip: 10.1.0.2\nhttps-listen-port: 7443\n",
				"/etc/rancher/k3s/config.yaml.d/10.yaml": "service-cidr: [10.51.0.0/16]\n", "/var/lib/rancher/k3s/server/token": "t"},
			apiserver.SourceK3s, []string{"10.51.0.1:443"}, []string{"10.1.0.2:7443"}, nil, nil, nil},
		"k3s, server with flags": {
			files{"/etc/systemd/system/k3s.service": "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--service-cidr=10.60.0.0/16' \\\n\t'--data-dir' \\\n\t'/srv/k3s' \\\n", "/srv/k3s/server/token": "t"},
			apiserver.SourceK3s, []string{"10.60.0.1:443"}, nil, nil, nil, nil},
		"RKE2, agent: the supervisor's port is not the API's": {
			files{"/etc/rancher/rke2/config.yaml": "server: https://rke2.example:9345\ntoken: x\n", "/var/lib/rancher/rke2/agent/kubelet.kubeconfig": apitest.Kubeconfig("https://127.0.0.1:6443"),
				"/var/lib/rancher/rke2/agent/etc/rke2-agent-load-balancer.json":            `{"ServerURL":"https://rke2.example:9345","ServerAddresses":["10.73.11.139:9345"]}`,
				"/var/lib/rancher/rke2/agent/etc/rke2-api-server-agent-load-balancer.json": `{"ServerURL":"https://rke2.example:6443","ServerAddresses":["10.73.11.139:6443","10.73.11.144:6443"]}`},
			apiserver.SourceRKE2, nil, []string{"10.73.11.139:6443", "10.73.11.144:6443", "rke2.example:6443"}, []string{"127.0.0.1:6443"}, []string{"/var/lib/rancher/rke2/agent/kubelet.kubeconfig"}, nil},
		"RKE2, server": {
			files{"/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml": fmt.Sprintf(manifest, "10.43.0.0/16"), "/var/lib/rancher/rke2/server/token": "t"},
			apiserver.SourceRKE2, []string{"10.43.0.1:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
		"MicroK8s, control plane": {
			files{"/var/snap/microk8s/current/credentials/kubelet.config": apitest.Kubeconfig("https://127.0.0.1:16443"),
				"/var/snap/microk8s/current/args/kube-apiserver": "--cert-dir=${SNAP_DATA}/certs\n--service-cluster-ip-range=10.152.183.0/24\n--secure-port=16443\n"},
			apiserver.SourceMicroK8s, []string{"10.152.183.1:443"}, nil, []string{"127.0.0.1:16443"}, []string{"/var/snap/microk8s/current/credentials/kubelet.config"}, nil},
		"MicroK8s, worker": {
			files{"/var/snap/microk8s/current/args/traefik/provider.yaml": "tcp:\n  routers:\n    Router-1: {rule: HostSNI(`*`), service: kube-apiserver, tls: {passthrough: true}}\n  services:\n    kube-apiserver:\n      loadBalancer:\n        servers:\n        - address: '10.1.0.1:16443'\n        - address: 10.1.0.2:16443\n"},
			apiserver.SourceMicroK8s, nil, []string{"10.1.0.1:16443", "10.1.0.2:16443"}, nil, nil, []string{"2 servers"}},
	})
}

func TestFindingTellsDefaultsFromWhatWasRead(t *testing.T) {
	for sentence, tc := range map[string]struct {
		config string
		want   bool
	}{
		"a k3s server whose configuration names no range has the product's default": {"node-ip: 10.1.0.2\n", true},
		"a range that is read counts as read, even where it equals the default":     {"service-cidr: 10.43.0.0/16\n", false},
	} {
		root := t.TempDir()
		apitest.Write(t, root, "/etc/rancher/k3s/config.yaml", tc.config)
		apitest.Write(t, root, "/var/lib/rancher/k3s/server/token", "t")
		f := source(t, root, apiserver.SourceK3s)
		if len(f.Services) != 1 || f.IsDefault(f.Services[0]) != tc.want {
			t.Errorf("%s: %v, defaults %v", sentence, f.Services, f.DefaultServices)
		}
	}
}

func TestKubeconfigFilesAreReadBelowTheRoot(t *testing.T) {
	ca := apitest.NewCA(t)
	root := t.TempDir()
	cert, key := ca.Client(t, "system:node:n1", "system:nodes")
	pair := "/var/lib/kubelet/pki/kubelet-client-2026-05-01.pem"
	apitest.Write(t, root, pair, string(cert)+string(key))
	// The kubelet makes an absolute link, which leads nowhere outside of the root.
	if err := os.Symlink(pair, filepath.Join(root, "/var/lib/kubelet/pki/kubelet-client-current.pem")); err != nil {
		t.Fatal(err)
	}
	apitest.Write(t, root, "/etc/kubernetes/pki/ca.crt", string(ca.PEM))
	apitest.Write(t, root, "/etc/kubernetes/kubelet.conf", `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443", certificate-authority: pki/ca.crt, proxy-url: "http://proxy.example:3128"}}]
users: [{name: u, user: {client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem, client-key: /var/lib/kubelet/pki/kubelet-client-current.pem}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`)
	c, err := LoadKubeconfig(root, "/etc/kubernetes/kubelet.conf")
	if err != nil {
		t.Fatal(err)
	}
	if string(c.ca) != string(ca.PEM) || !strings.Contains(string(c.Config.CertData), string(cert)) || c.Config.CertFile != "" || c.Config.Proxy != nil {
		t.Errorf("config is %v", c.Config)
	}
	if err := os.Remove(filepath.Join(root, pair)); err != nil {
		t.Fatal(err)
	}
	c, err = LoadKubeconfig(root, "/etc/kubernetes/kubelet.conf")
	if err == nil || !strings.Contains(err.Error(), "cannot use its credentials") || c == nil || c.Server != "https://10.0.0.1:6443" {
		t.Errorf("without its certificate: %+v, %v", c, err)
	}
}

func TestExecCredentialsNeedTheHost(t *testing.T) {
	root := t.TempDir()
	apitest.Write(t, root, "/k.conf", strings.Replace(apitest.Kubeconfig("https://10.0.0.1:6443"), "{token: t}", "{exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: Never}}", 1))
	c, err := LoadKubeconfig(root, "/k.conf")
	if err == nil || !strings.Contains(err.Error(), "cannot run in a container") || c == nil {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestPod(t *testing.T) {
	sa := t.TempDir()
	apitest.Write(t, sa, "token", "abc\n")
	apitest.Write(t, sa, "ca.crt", "ca")
	volume, empty := t.TempDir(), t.TempDir()
	apitest.Write(t, volume, "KUBERNETES_SERVICE_HOST", "10.0.0.2\n")
	apitest.Write(t, volume, "KUBERNETES_SERVICE_PORT", "6443\n")
	for name, tc := range map[string]struct {
		env                 PodEnvironment
		services, endpoints []string
		creds               int
	}{
		"not in a pod":                              {PodEnvironment{}, nil, nil, 0},
		"in a pod: the host is the Service IP":      {PodEnvironment{ServiceHost: "10.96.0.1", ServicePort: "443", Port: "tcp://10.96.0.1:443"}, []string{"10.96.0.1:443"}, nil, 0},
		"in an IPv6 pod":                            {PodEnvironment{ServiceHost: "fd00:96::1", ServicePort: "443", Port: "tcp://[fd00:96::1]:443"}, []string{"[fd00:96::1]:443"}, nil, 0},
		"the host was set by hand to an API server": {PodEnvironment{ServiceHost: "10.0.0.1", ServicePort: "6443", Port: "tcp://10.96.0.1:443"}, []string{"10.96.0.1:443"}, []string{"10.0.0.1:6443"}, 0},
		"the host was set by hand to a name":        {PodEnvironment{ServiceHost: "api.example", ServicePort: "6443", Port: "tcp://10.96.0.1:443"}, []string{"10.96.0.1:443"}, []string{"api.example:6443"}, 0},
		"by hand to a proxy of the node":            {PodEnvironment{ServiceHost: "localhost", ServicePort: "7445", Port: "tcp://10.96.0.1:443"}, []string{"10.96.0.1:443"}, nil, 0},
		"the ConfigMap goes before the variable":    {PodEnvironment{ServiceHost: "10.0.0.1", ServicePort: "443", EndpointDir: volume}, nil, []string{"10.0.0.2:6443"}, 0},
		"an empty volume says nothing":              {PodEnvironment{ServiceHost: "10.0.0.1", ServicePort: "6443", EndpointDir: empty}, nil, []string{"10.0.0.1:6443"}, 0},
		"nonsense":                                  {PodEnvironment{ServiceHost: "0.0.0.0", ServicePort: "x", Port: "udp://1"}, nil, nil, 0},
		"a ServiceAccount":                          {PodEnvironment{ServiceAccountDir: sa}, nil, nil, 1},
		"no ServiceAccount":                         {PodEnvironment{ServiceAccountDir: sa + "/none"}, nil, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := Pod(tc.env)
			if !slices.Equal(apitest.Strings(f.Services), tc.services) || !slices.Equal(apitest.Strings(f.Endpoints), tc.endpoints) || len(f.Credentials) != tc.creds {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// FuzzForeignText feeds what others write to all who read it: nobody may
// panic, and what comes out must be usable.
func FuzzForeignText(f *testing.F) {
	for _, s := range []string{fmt.Sprintf(manifest, "10.96.0.0/12"), apitest.Kubeconfig("https://10.0.0.1:6443"), `{"ServerURL":"https://a:1","ServerAddresses":["1.2.3.4:5"]}`,
		"tcp: {services: {kube-apiserver: {loadBalancer: {servers: [{address: 10.0.0.1:1}]}}}}", "--service-cluster-ip-range=10.0.0.0/24 --advertise-address 10.0.0.1",
		"controlPlaneEndpoint: a:6443\nnetworking: {serviceSubnet: 10.96.0.0/16}\n", "service-cidr: [10.43.0.0/16]\nserver: https://x:9345\n"} {
		f.Add(s)
	}
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, in string) {
		var files Finding
		h := testHost(root)
		if args, err := manifestArgs(h, []byte(in)); err == nil {
			files.addServerArgs(h, "x", args)
		}
		args := nodeconf.Flags(nodeconf.SplitArgs(h, in, nil))
		files.addServerArgs(h, "x", args)
		args.Kubeconfigs()
		files.addBalancerText("x", []byte(in), apiserver.EndpointPort)
		files.addTraefik("x", []byte(in))
		files.addProxyList("x", []byte(in))
		files.addK0sConfig(h, "x", []byte(in))
		for _, e := range append(nginxServers(in), haproxyServers(in)...) {
			files.addEntry("x", e)
		}
		files.addURL("x", serverURL(in, true), 0)
		k3s.addServer(h, &files, nodeconf.Rancher{Flags: args}, "x", false)
		data := map[string]string{"kubeconfig": in, "kubeconfig.conf": in, "ClusterConfiguration": in, "KUBERNETES_SERVICE_HOST": in, "KUBERNETES_SERVICE_PORT": in}
		var cm Finding
		for _, decode := range []func(*Finding, string, map[string]string){decodeClusterInfo, decodeKubeProxy, decodeKubeadmConfig, decodeServicesEndpoint} {
			decode(&cm, "x", data)
		}
		for _, f := range append([]Finding{files, cm}, Pod(PodEnvironment{ServiceHost: in, ServicePort: in, Port: in})) {
			for _, s := range f.Services {
				apitest.CheckAddr(t, s)
			}
			for _, e := range f.Endpoints {
				if e.Loopback() {
					t.Fatalf("%s is on loopback", e)
				}
				if e.Resolved() {
					apitest.CheckAddr(t, e.Addr)
				} else if e.Host == "" || e.Addr.Port() == 0 {
					t.Fatalf("unusable endpoint %#v", e)
				}
			}
		}
	})
}

func BenchmarkFiles(b *testing.B) {
	root := b.TempDir()
	ca := apitest.NewCA(b)
	apitest.Write(b, root, "/etc/kubernetes/kubelet.conf", ca.Kubeconfig(b, "https://10.0.0.1:6443", "system:node:n1", "system:nodes"))
	apitest.Write(b, root, "/etc/kubernetes/manifests/kube-apiserver.yaml", fmt.Sprintf(manifest, "10.96.0.0/12"))
	for b.Loop() {
		Files(root)
	}
}
