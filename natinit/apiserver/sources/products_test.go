package sources

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/apitest"
)

// The files below follow the formats that installers and public guides of the
// products write.

func pod(command, args string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver, namespace: kube-system}\nspec:\n  hostNetwork: true\n  containers:\n  - name: kube-apiserver\n    image: x\n    command: [" + command + "]\n    args: [" + args + "]\n"
}

func TestStaticPodsOfAPIServers(t *testing.T) {
	const dir = "/etc/kubernetes/manifests/"
	noAddress := []string{"whose address is not known"}
	runSourceCases(t, map[string]sourceCase{
		"kOps: another suffix, go-runner, the port 443, all addresses": {
			files{dir + "kube-apiserver.manifest": pod("/go-runner", "--log-file=/var/log/kube-apiserver.log, --also-stdout, /usr/local/bin/kube-apiserver, --bind-address=0.0.0.0, --secure-port=443, --service-cluster-ip-range=100.64.0.0/13")},
			apiserver.SourceKubeadm, []string{"100.64.0.1:443"}, nil, nil, nil, append(noAddress, "on port 443")},
		"any file name, JSON, flags and values apart": {
			files{dir + "control-plane.json": `{"spec":{"containers":[{"name":"other"},{"name":"api","command":["kube-apiserver","--service-cluster-ip-range","10.32.0.0/24","--advertise-address","10.0.0.5"]}]}}`},
			apiserver.SourceKubeadm, []string{"10.32.0.1:443"}, []string{"10.0.0.5:6443"}, nil, nil, nil},
		"a shell starts it": {
			files{dir + "api.yaml": pod("/bin/sh, -c", `"exec kube-apiserver --advertise-address=10.0.0.5 --service-cluster-ip-range='10.32.0.0/24' 1>>/var/log/kube-apiserver.log 2>&1"`)},
			apiserver.SourceKubeadm, []string{"10.32.0.1:443"}, []string{"10.0.0.5:6443"}, nil, nil, nil},
		"hyperkube, bind address only": {
			files{dir + "api.yaml": pod("/hyperkube, apiserver", "--bind-address=10.0.0.5, --secure-port=8443, --service-cluster-ip-range=10.32.0.0/24")},
			apiserver.SourceKubeadm, []string{"10.32.0.1:443"}, []string{"10.0.0.5:8443"}, nil, nil, nil},
		"IPv6": {
			files{dir + "api.yaml": pod("kube-apiserver", `"--advertise-address=2001:db8::5", "--service-cluster-ip-range=fd00:96::/112"`)},
			apiserver.SourceKubeadm, []string{"[fd00:96::1]:443"}, []string{"[2001:db8::5]:6443"}, nil, nil, nil},
		"no range: the default of kube-apiserver": {
			files{dir + "api.yaml": pod("kube-apiserver", "--advertise-address=10.0.0.5")},
			apiserver.SourceKubeadm, []string{"10.0.0.1:443"}, []string{"10.0.0.5:6443"}, nil, nil, []string{"the default of kube-apiserver"}},
		"a copy that somebody left beside does not count, nor a hidden file": {
			files{dir + "kube-apiserver.yaml": fmt.Sprintf(manifest, "10.96.0.0/12"), dir + "kube-apiserver.yaml.bak": fmt.Sprintf(manifest, "10.1.0.0/16"), dir + ".x.yaml": fmt.Sprintf(manifest, "10.2.0.0/16")},
			apiserver.SourceKubeadm, []string{"10.96.0.1:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
		"other static pods are none": {
			files{dir + "etcd.yaml": "spec: {containers: [{name: etcd, command: [etcd, --advertise-client-urls=https://10.0.0.1:2379]}]}\n"},
			apiserver.SourceKubeadm, nil, nil, nil, nil, []string{"no kubeadm files"}},
		"the kubelet's staticPodPath": {
			files{"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/etc/k.yaml --config-dir=/etc/k.d\n", "/etc/k.yaml": "staticPodPath: /no\n", "/etc/k.d/10.conf": "kind: KubeletConfiguration\nstaticPodPath: /srv/pods\n",
				"/srv/pods/x.yaml": fmt.Sprintf(manifest, "10.96.0.0/12"), "/no/x.yaml": fmt.Sprintf(manifest, "10.9.0.0/16")},
			apiserver.SourceServer, []string{"10.96.0.1:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
		"the kubelet's --pod-manifest-path": {
			files{"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --pod-manifest-path /srv/pods\n", "/srv/pods/x.manifest": fmt.Sprintf(manifest, "10.96.0.0/12")},
			apiserver.SourceServer, []string{"10.96.0.1:443"}, []string{"10.0.0.11:6443"}, nil, nil, nil},
	})
}

func TestServicesThatRunAPIServers(t *testing.T) {
	runSourceCases(t, map[string]sourceCase{
		"guides for binaries: flags over lines of a file": {
			files{"/usr/lib/systemd/system/kube-apiserver.service": "[Service]\nEnvironmentFile=/opt/kubernetes/cfg/kube-apiserver.conf\nExecStart=/opt/kubernetes/bin/kube-apiserver $KUBE_APISERVER_OPTS\n",
				"/opt/kubernetes/cfg/kube-apiserver.conf": "KUBE_APISERVER_OPTS=\"--v=2 \\\n--bind-address=192.168.31.71 \\\n--secure-port=6443 \\\n--advertise-address=192.168.31.71 \\\n--service-cluster-ip-range=10.0.0.0/24 \\\n--enable-admission-plugins=NodeRestriction\"\n"},
			apiserver.SourceServer, []string{"10.0.0.1:443"}, []string{"192.168.31.71:6443"}, nil, nil, nil},
		"Kubernetes the hard way": {
			files{"/etc/systemd/system/kube-apiserver.service": "[Unit]\nDescription=Kubernetes API Server\n\n[Service]\nExecStart=/usr/local/bin/kube-apiserver \\\n  --allow-privileged=true \\\n  --bind-address=0.0.0.0 \\\n  --service-cluster-ip-range=10.32.0.0/24 \\\n  --v=2\nRestart=on-failure\n"},
			apiserver.SourceServer, []string{"10.32.0.1:443"}, nil, nil, nil, []string{"whose address is not known"}},
		"several variables of several files, as CentOS had it": {
			files{"/usr/lib/systemd/system/kube-apiserver.service": "[Service]\nEnvironmentFile=-/etc/kubernetes/config\nEnvironmentFile=-/etc/kubernetes/apiserver\nUser=kube\nExecStart=/usr/bin/kube-apiserver \\\n\t    $KUBE_LOGTOSTDERR \\\n\t    $KUBE_API_ADDRESS \\\n\t    $KUBE_SERVICE_ADDRESSES \\\n\t    $KUBE_API_ARGS\n",
				"/etc/kubernetes/config": "KUBE_LOGTOSTDERR=\"--logtostderr=true\"\n", "/etc/kubernetes/apiserver": "# x\nKUBE_API_ADDRESS=\"--bind-address=10.0.0.7\"\nKUBE_SERVICE_ADDRESSES=\"--service-cluster-ip-range=10.254.0.0/16\"\nKUBE_API_ARGS=\"\"\n"},
			apiserver.SourceServer, []string{"10.254.0.1:443"}, []string{"10.0.0.7:6443"}, nil, nil, nil},
		"a unit of systemd-run": {
			files{"/run/systemd/transient/my-api.service": "# This is a transient unit file\n[Service]\nExecStart=\nExecStart=@/opt/bin/kube-apiserver \"/opt/bin/kube-apiserver\" \"--advertise-address=10.0.0.7\" \"--service-cluster-ip-range=10.32.0.0/24\"\n"},
			apiserver.SourceServer, []string{"10.32.0.1:443"}, []string{"10.0.0.7:6443"}, nil, nil, nil},
		"hyperkube, of another name, in a shell": {
			files{"/etc/systemd/system/control-plane.service": "[Service]\nExecStart=/bin/bash -c '/usr/bin/hyperkube apiserver --advertise_address=10.0.0.7 --service-cluster-ip-range=10.32.0.0/24'\n"},
			apiserver.SourceServer, []string{"10.32.0.1:443"}, []string{"10.0.0.7:6443"}, nil, nil, nil},
		"docker run": {
			files{"/etc/systemd/system/kube-apiserver.service": "[Service]\nExecStartPre=-/usr/bin/docker rm -f kube-apiserver\nExecStart=/usr/bin/docker run --name kube-apiserver --net=host registry.k8s.io/kube-apiserver:v1.30.0 kube-apiserver --advertise-address=10.0.0.7 --service-cluster-ip-range=10.32.0.0/24\n"},
			apiserver.SourceServer, []string{"10.32.0.1:443"}, []string{"10.0.0.7:6443"}, nil, nil, nil},
		"a unit that only restarts one": {
			files{"/etc/systemd/system/kube-apiserver-restart.service": "[Service]\nExecStart=/usr/bin/systemctl restart kube-apiserver\n"},
			apiserver.SourceServer, nil, nil, nil, nil, []string{"no service runs kube-apiserver"}},
		"a masked unit": {
			files{"/etc/systemd/system/kube-apiserver.service": "", "/usr/lib/systemd/system/kube-apiserver.service": "[Service]\nExecStart=/kube-apiserver --advertise-address=10.0.0.7\n"},
			apiserver.SourceServer, nil, nil, nil, nil, nil},
		"Talos: the machine's configuration": {
			files{"/system/state/config.yaml": "version: v1alpha1\nmachine: {type: worker}\ncluster:\n  controlPlane: {endpoint: 'https://talos.example:6443'}\n  network: {serviceSubnets: [10.97.0.0/12]}\n---\napiVersion: v1alpha1\nkind: HostnameConfig\n"},
			apiserver.SourceServer, []string{"10.96.0.1:443"}, []string{"talos.example:6443"}, nil, nil, nil},
		"OpenShift: the newest revision, and the name that its kubelets use": {
			files{"/etc/kubernetes/static-pod-resources/kube-apiserver-pod-9/configmaps/config/config.yaml": "apiServerArguments: {service-cluster-ip-range: [172.29.0.0/16]}\n",
				"/etc/kubernetes/static-pod-resources/kube-apiserver-pod-10/configmaps/config/config.yaml": "apiServerArguments: {advertise-address: ['${HOST_IP}']}\nservicesSubnet: 172.30.0.0/16\n",
				"/etc/kubernetes/apiserver-url.env": "KUBERNETES_SERVICE_HOST='api-int.oc.example'\nKUBERNETES_SERVICE_PORT='6443'\n"},
			apiserver.SourceServer, []string{"172.30.0.1:443"}, []string{"api-int.oc.example:6443"}, nil, nil, nil},
	})
}

func TestAddOwnServerTakesTheAddressOfTheDefaultRoute(t *testing.T) {
	h := testHost(t.TempDir())
	h.address = func() (netip.Addr, bool) { return netip.MustParseAddr("10.0.0.9"), true }
	for _, tc := range []struct {
		sentence string
		args     []string
		want     []string
	}{
		{"all addresses are none", []string{"--bind-address=0.0.0.0", "--secure-port=443"}, []string{"10.0.0.9:443"}},
		{"of IPv6 too", []string{"--bind-address=::"}, []string{"10.0.0.9:6443"}},
		{"no address at all", []string{"--v=2"}, []string{"10.0.0.9:6443"}},
		{"an address that is given counts", []string{"--bind-address=::", "--advertise-address=10.0.0.8"}, []string{"10.0.0.8:6443"}},
		{"no secure port", []string{"--secure-port=0"}, nil},
	} {
		var f Finding
		f.addServerArgs(h, "x", tc.args)
		if got := apitest.Strings(f.Endpoints); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.sentence, got, tc.want)
		}
	}
}

func TestKubeletsKubeconfig(t *testing.T) {
	found := func(f files, path string) sourceCase {
		f[path] = apitest.Kubeconfig("https://10.0.0.3:6443")
		return sourceCase{f, apiserver.SourceKubelet, nil, []string{"10.0.0.3:6443"}, nil, []string{path}, nil}
	}
	const unit = "/etc/systemd/system/kubelet.service"
	runSourceCases(t, map[string]sourceCase{
		"guides for binaries: an EnvironmentFile": found(files{"/usr/lib/systemd/system/kubelet.service": "[Service]\nEnvironmentFile=-/opt/kubernetes/cfg/kubelet\nExecStart=/opt/kubernetes/bin/kubelet $KUBELET_OPTS\n",
			"/opt/kubernetes/cfg/kubelet": "KUBELET_OPTS=\"--v=2 \\\n--kubeconfig=/opt/kubernetes/my.kubeconfig \\\n--bootstrap-kubeconfig=/opt/kubernetes/cfg/boot.kubeconfig\"\n"}, "/opt/kubernetes/my.kubeconfig"),
		"kubespray": found(files{unit: "[Service]\nEnvironmentFile=-/etc/kubernetes/kubelet.env\nExecStart=/usr/local/bin/kubelet \\\n\t\t\"$KUBE_LOGTOSTDERR\" \\\n\t\t\"$KUBELET_ARGS\"\n",
			"/etc/kubernetes/kubelet.env": "KUBE_LOGTOSTDERR=\"--logtostderr=true\"\nKUBELET_ARGS=\"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n--config=/etc/kubernetes/kubelet-config.yaml \\\n--kubeconfig=/etc/kubernetes/node.conf \\\n \"\n"}, "/etc/kubernetes/node.conf"),
		"EKS' nodeadm": found(files{unit: "[Service]\nEnvironmentFile=/etc/eks/kubelet/environment\nExecStart=/usr/bin/kubelet $NODEADM_KUBELET_ARGS\n", "/etc/eks/kubelet/environment": "NODEADM_KUBELET_ARGS=\"--node-ip=10.0.0.2 --kubeconfig=/run/eks/kubeconfig --v=2\""}, "/run/eks/kubeconfig"),
		"AKS: a variable, and drop-ins": found(files{unit: "[Service]\nEnvironmentFile=/etc/default/kubelet\nExecStart=/usr/local/bin/kubelet \\\n  --enable-server \\\n  $KUBELET_TLS_BOOTSTRAP_FLAGS $KUBELET_FLAGS\n",
			unit + ".d/10-tlsbootstrap.conf": "[Service]\nEnvironment=KUBELET_TLS_BOOTSTRAP_FLAGS=\"--kubeconfig /var/lib/kubelet/node-kubeconfig\"\n"}, "/var/lib/kubelet/node-kubeconfig"),
		"kOps: the whole list in quotes": found(files{unit: "[Service]\nEnvironmentFile=/etc/sysconfig/kubelet\nExecStart=/usr/local/bin/kubelet \"$DAEMON_ARGS\"\n", "/etc/sysconfig/kubelet": "DAEMON_ARGS=\"--cloud-provider=external --kubeconfig=/var/lib/kubelet/kops.kubeconfig\"\n"}, "/var/lib/kubelet/kops.kubeconfig"),
		"Typhoon: in a container":        found(files{unit: "[Service]\nExecStart=/usr/bin/docker run \\\n  --name kubelet \\\n  --network host \\\n  -v /etc/kubernetes:/etc/kubernetes:ro \\\n  quay.io/poseidon/kubelet:v1.33.1 \\\n  --bootstrap-kubeconfig=/etc/kubernetes/kubeconfig.boot \\\n  --kubeconfig=/var/lib/kubelet/ty.conf\n"}, "/var/lib/kubelet/ty.conf"),
		"a shell with a log file":        found(files{unit: "[Service]\nEnvironmentFile=-/etc/k.env\nExecStart=/bin/sh -c \"exec /usr/local/bin/kubelet $KUBELET_ARGS >> /var/log/kubelet.log 2>&1\"\n", "/etc/k.env": "KUBELET_ARGS='--kubeconfig=/srv/k.conf'\n"}, "/srv/k.conf"),
		"a drop-in that starts anew": found(files{"/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/no\n", "/no": apitest.Kubeconfig("https://10.9.9.9:6443"),
			"/usr/lib/systemd/system/kubelet.service.d/10.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --kubeconfig=/srv/k.conf\n"}, "/srv/k.conf"),
		"OpenRC":   found(files{"/etc/init.d/kubelet": "command=/usr/bin/kubelet\ncommand_args=\"$command_args $KUBELET_KUBEADM_ARGS\"\n", "/etc/conf.d/kubelet": "command_args=\"--kubeconfig=/srv/k.conf\"\n"}, "/srv/k.conf"),
		"Gardener": found(files{}, "/var/lib/kubelet/kubeconfig-real"),
		"a unit is not found, its environment file is": found(files{"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\"--kubeconfig=/srv/k.conf\"\n"}, "/srv/k.conf"),
		"a comment is no flag": {files{unit: "[Service]\n# ExecStart=/usr/bin/kubelet --kubeconfig=/srv/k.conf\nExecStart=/usr/bin/kubelet\n", "/srv/k.conf": apitest.Kubeconfig("https://10.0.0.3:6443")},
			apiserver.SourceKubelet, nil, nil, nil, nil, []string{"no kubelet's kubeconfig"}},
	})
}

func TestK3sAndRKE2AsConfigured(t *testing.T) {
	const conf, unit = "/etc/rancher/k3s/config.yaml", "/etc/systemd/system/k3s.service"
	server := func(svc, ep string, f files) sourceCase {
		f["/var/lib/rancher/k3s/server/token"] = "t"
		c := sourceCase{f, apiserver.SourceK3s, []string{svc}, nil, nil, nil, nil}
		if ep != "" {
			c.endpoints = []string{ep}
		}
		return c
	}
	runSourceCases(t, map[string]sourceCase{
		"OpenRC": server("10.45.0.1:443", "192.0.2.11:6443", files{"/etc/init.d/k3s": "command=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--service-cidr' \\\n\t'10.45.0.0/16' \\\n\t'--advertise-address' \\\n\t'192.0.2.11' \\\n    >>/var/log/k3s.log 2>&1\"\n"}),
		"OpenRC's agent has its URL in k3s-agent.env": {files{"/etc/init.d/k3s-agent": "command=/k3s\ncommand_args=\"agent >>/l 2>&1\"\nset -o allexport\nif [ -f /etc/rancher/k3s/k3s-agent.env ]; then . /etc/rancher/k3s/k3s-agent.env; fi\n", "/etc/rancher/k3s/k3s-agent.env": "K3S_URL='https://192.0.2.11:6443'\n"},
			apiserver.SourceK3s, nil, []string{"192.0.2.11:6443"}, nil, nil, nil},
		"a port in quotes":                   server("10.43.0.1:443", "192.0.2.11:7443", files{conf: "node-ip: 192.0.2.11\nhttps-listen-port: \"7443\"\n"}),
		"the port that is advertised counts": server("10.43.0.1:443", "192.0.2.11:8443", files{conf: "node-ip: 192.0.2.11\nhttps-listen-port: 7443\nadvertise-port: 8443\n"}),
		"only the first node address is advertised, and an external one before it": server("10.43.0.1:443", "203.0.113.5:6443", files{conf: "node-ip: [10.0.0.1, 'fd00::1']\nnode-external-ip: 203.0.113.5,203.0.113.6\n"}),
		"an argument of kube-apiserver itself goes first":                          server("10.99.0.1:443", "10.0.0.8:6443", files{conf: "service-cidr: 10.45.0.0/16\nnode-ip: 10.0.0.1\nkube-apiserver-arg:\n- service-cluster-ip-range=10.99.0.0/16\n- advertise-address=10.0.0.8\n"}),
		"an IPv6 node has the default of IPv6":                                     server("[fd00:43::1]:443", "[2001:db8::1]:6443", files{conf: "node-ip: '2001:db8::1'\n"}),
		"a server without an API server":                                           server("10.43.0.1:443", "", files{conf: "node-ip: 10.0.0.1\ndisable-apiserver: true\n"}),
		"a service of another name":                                                server("10.45.0.1:443", "10.0.0.1:6443", files{"/etc/systemd/system/k3s-prod.service": "[Service]\nExecStart=/usr/local/bin/k3s server '--node-ip=10.0.0.1' --service-cidr \"10.45.0.0/16\"\n"}),
		"--config elsewhere":                                                       server("10.45.0.1:443", "10.0.0.1:6443", files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server -c /srv/k3s.yaml\n", "/srv/k3s.yaml": "node-ip: 10.0.0.1\n", "/srv/k3s.yaml.d/x.yml": "service-cidr: 10.45.0.0/16\n", conf: "service-cidr: 10.1.0.0/16\n"}),
		"a short flag for the directory":                                           {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server -d /srv/k3s --service-cidr=10.45.0.0/16\n", "/srv/k3s/agent/kubelet.kubeconfig": apitest.Kubeconfig("https://10.0.0.4:6443")}, apiserver.SourceK3s, []string{"10.45.0.1:443"}, []string{"10.0.0.4:6443"}, nil, []string{"/srv/k3s/agent/kubelet.kubeconfig"}, nil},
		"a server before its first start":                                          {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s server --node-ip=10.0.0.1 --service-cidr=10.45.0.0/16\n"}, apiserver.SourceK3s, []string{"10.45.0.1:443"}, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"an agent that once was a server":                                          {files{unit: "[Service]\nExecStart=/usr/local/bin/k3s agent --server=https://10.0.0.1:6443\n", "/var/lib/rancher/k3s/server/token": "t"}, apiserver.SourceK3s, nil, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"an environment file that a unit names": {files{"/usr/lib/systemd/system/k3s-agent.service": "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/sysconfig/%N\nExecStart=/usr/bin/k3s agent\n", "/etc/sysconfig/k3s-agent": "K3S_URL=https://k3s.example:443\n"},
			apiserver.SourceK3s, nil, []string{"k3s.example:443"}, nil, nil, nil},
		"RKE2: the port of the supervisor, units below /usr/local, an environment file": {
			files{"/usr/local/lib/systemd/system/rke2-agent.service": "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/usr/local/lib/systemd/system/%N.env\nExecStart=/usr/local/bin/rke2 agent\n", "/usr/local/lib/systemd/system/rke2-agent.env": "HOME=/root\nRKE2_URL=https://10.0.0.1:9345\n"},
			apiserver.SourceRKE2, nil, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"RKE2, a server before its first start": {
			files{"/usr/local/lib/systemd/system/rke2-server.service": "[Service]\nExecStart=/usr/local/bin/rke2 server\n", "/etc/rancher/rke2/config.yaml": "node-ip: 10.0.0.1\n", "/etc/rancher/rke2/config.yaml.d/50-rancher.yaml": `{"service-cidr": "10.53.0.0/16", "server": "https://10.0.0.2:9345"}`},
			apiserver.SourceRKE2, []string{"10.53.0.1:443"}, []string{"10.0.0.2:6443", "10.0.0.1:6443"}, nil, nil, nil},
	})
}

func TestBalancersOfTheNode(t *testing.T) {
	runSourceCases(t, map[string]sourceCase{
		"kubespray's nginx": {
			files{"/etc/nginx/nginx.conf": "worker_processes 2;\nstream {\n  upstream kube_apiserver {\n    least_conn;\n    server 10.0.0.11:6443;\n    server 10.0.0.12:6443 max_fails=3; # x\n    # server 10.0.0.13:6443;\n  }\n  server {\n    listen 127.0.0.1:6443;\n    proxy_pass kube_apiserver;\n  }\n}\nhttp { upstream web { server 10.9.9.9:80; } }\n"},
			apiserver.SourceBalancer, nil, []string{"10.0.0.11:6443", "10.0.0.12:6443"}, nil, nil, []string{"2 servers"}},
		"HAProxy": {
			files{"/etc/haproxy/haproxy.cfg": "global\n  maxconn 4000\nfrontend kube_api_frontend\n  bind 127.0.0.1:6443\n  default_backend kube_api_backend\n\nbackend kube_api_backend\n  mode tcp\n  option httpchk GET /healthz\n  server master1 10.0.0.11:6443 check check-ssl verify none\n  server master2 [fd00::12]:6443 check\nbackend web\n  server w 10.9.9.9:80\n"},
			apiserver.SourceBalancer, nil, []string{"10.0.0.11:6443", "[fd00::12]:6443"}, nil, nil, nil},
		"a balancer of other things": {
			files{"/etc/nginx/nginx.conf": "http { upstream web { server 10.9.9.9:80; } }\n", "/etc/haproxy/haproxy.cfg": "listen web\n server w 10.9.9.9:80\n"},
			apiserver.SourceBalancer, nil, nil, nil, nil, []string{"no nginx or HAProxy"}},
	})
}

func TestSnapsAndK0s(t *testing.T) {
	const args = "/var/snap/k8s/common/args/"
	runSourceCases(t, map[string]sourceCase{
		"Canonical Kubernetes, control plane": {
			files{args + "kube-apiserver": "--advertise-address=10.0.0.1\n--secure-port=6443\n--service-cluster-ip-range=\"10.152.183.0/24,fd98::/108\"\n"},
			apiserver.SourceCanonical, []string{"10.152.183.1:443"}, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"Canonical Kubernetes, worker": {
			files{args + "k8s-apiserver-proxy": "--endpoints=" + args + "conf.d/k8s-apiserver-proxy.json\n--listen=127.0.0.1:6443\n", args + "conf.d/k8s-apiserver-proxy.json": `{"endpoints":["10.0.0.1:6443","[fd00::1]:6443"]}`},
			apiserver.SourceCanonical, nil, []string{"10.0.0.1:6443", "[fd00::1]:6443"}, nil, nil, []string{"2 servers"}},
		"its list beside kubeadm's files": {
			files{"/etc/kubernetes/k8s-apiserver-proxy.json": `{"endpoints":["10.0.0.1:6443"]}`}, apiserver.SourceCanonical, nil, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"Charmed Kubernetes": {
			files{"/var/snap/kube-apiserver/current/args": "--advertise-address \"10.0.0.1\"\n--service-cluster-ip-range \"10.152.183.0/24\"\n--secure-port=6443\n"},
			apiserver.SourceCanonical, []string{"10.152.183.1:443"}, []string{"10.0.0.1:6443"}, nil, nil, nil},
		"MicroK8s, a worker has the file of the API server too": {
			files{"/var/snap/microk8s/current/args/kube-apiserver": "--service-cluster-ip-range=10.152.183.0/24\n", "/var/snap/microk8s/current/var/lock/clustered.lock": "", "/var/snap/microk8s/current/args/traefik/provider.yaml": "tcp: {services: {kube-apiserver: {loadBalancer: {servers: [{address: '10.1.0.1:16443'}]}}}}\n"},
			apiserver.SourceMicroK8s, nil, []string{"10.1.0.1:16443"}, nil, nil, nil},
		"k0s": {
			files{"/etc/k0s/k0s.yaml": "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec:\n  api: {address: 10.0.0.1, externalAddress: api.example, port: 7443}\n  network: {serviceCIDR: 10.97.0.0/16}\n"},
			apiserver.SourceK0s, []string{"10.97.0.1:443"}, []string{"10.0.0.1:7443", "api.example:7443"}, nil, nil, nil},
		"k0s, a file elsewhere, and its default range": {
			files{"/etc/systemd/system/k0scontroller.service": "[Service]\nExecStart=/usr/local/bin/k0s controller --config=/srv/k0s.yaml --enable-worker\n", "/srv/k0s.yaml": "spec: {api: {address: 10.0.0.1}}\n"},
			apiserver.SourceK0s, []string{"10.96.0.1:443"}, []string{"10.0.0.1:6443"}, nil, nil, []string{"the default of k0s"}},
		"k0s, a worker with a directory of its own": {
			files{"/etc/systemd/system/k0sworker.service": "[Service]\nExecStart=/usr/local/bin/k0s worker --data-dir=/srv/k0s --token-file=/etc/k0s/token\n", "/srv/k0s/kubelet.conf": apitest.Kubeconfig("https://10.0.0.1:6443")},
			apiserver.SourceK0s, nil, []string{"10.0.0.1:6443"}, nil, []string{"/srv/k0s/kubelet.conf"}, nil},
	})
}

func TestServersOfKubeconfigs(t *testing.T) {
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

func TestConfigMapsOfKubeProxyAndKubeadm(t *testing.T) {
	k := apitest.Kubeconfig("https://10.0.0.3:6443")
	for sentence, tc := range map[string]struct {
		decode    func(*Finding, string, map[string]string)
		data      map[string]string
		services  []string
		endpoints []string
	}{
		"kubeadm's key":                        {decodeKubeProxy, map[string]string{"config.conf": "clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\n", "kubeconfig.conf": k}, nil, []string{"10.0.0.3:6443"}},
		"EKS' key":                             {decodeKubeProxy, map[string]string{"config": "x: y\n", "kubeconfig": k}, nil, []string{"10.0.0.3:6443"}},
		"the key that its configuration names": {decodeKubeProxy, map[string]string{"a": apitest.Kubeconfig("https://10.9.9.9:1"), "config.yaml": "clientConnection: {kubeconfig: /x/kc}\n", "kc": k}, nil, []string{"10.0.0.3:6443"}},
		"any other key":                        {decodeKubeProxy, map[string]string{"a": "text", "kube-proxy.kubeconfig": k}, nil, []string{"10.0.0.3:6443"}},
		"no kubeconfig":                        {decodeKubeProxy, map[string]string{"config.conf": "x: y\n"}, nil, nil},
		"no scheme":                            {decodeKubeProxy, map[string]string{"kubeconfig": apitest.Kubeconfig("10.0.0.3:6443")}, nil, []string{"10.0.0.3:6443"}},
		"kubeadm":                              {decodeKubeadmConfig, map[string]string{"ClusterConfiguration": "controlPlaneEndpoint: cp.example\nnetworking: {serviceSubnet: '10.97.0.0/16,fd00::/112'}\n"}, []string{"10.97.0.1:443"}, []string{"cp.example:6443"}},
		"kubeadm, the Service IP as the control plane's endpoint": {decodeKubeadmConfig, map[string]string{"ClusterConfiguration": "controlPlaneEndpoint: 10.96.0.1:443\nnetworking: {serviceSubnet: 10.96.0.0/12}\n"}, []string{"10.96.0.1:443"}, nil},
		"kubeadm v1beta3: an argument replaces the subnet":        {decodeKubeadmConfig, map[string]string{"ClusterConfiguration": "apiServer: {extraArgs: {service-cluster-ip-range: 10.98.0.0/16}}\nnetworking: {serviceSubnet: 10.96.0.0/12}\n"}, []string{"10.98.0.1:443"}, nil},
		"kubeadm v1beta4: arguments are a list":                   {decodeKubeadmConfig, map[string]string{"ClusterConfiguration": "apiServer: {extraArgs: [{name: service-cluster-ip-range, value: 10.98.0.0/16}]}\n"}, []string{"10.98.0.1:443"}, nil},
		"kubeadm up to 1.21 kept the nodes of the control plane":  {decodeKubeadmConfig, map[string]string{"ClusterConfiguration": "networking: {serviceSubnet: 10.96.0.0/12}\n", "ClusterStatus": "apiEndpoints:\n  b: {advertiseAddress: 10.0.0.12, bindPort: 7443}\n  a: {advertiseAddress: 10.0.0.11}\n"}, []string{"10.96.0.1:443"}, []string{"10.0.0.11:6443", "10.0.0.12:7443"}},
	} {
		var f Finding
		tc.decode(&f, "x", tc.data)
		if got := apitest.Strings(f.Services); !slices.Equal(got, tc.services) {
			t.Errorf("%s: services %v, want %v: %q", sentence, got, tc.services, f.Notes)
		}
		if got := apitest.Strings(f.Endpoints); !slices.Equal(got, tc.endpoints) {
			t.Errorf("%s: endpoints %v, want %v: %q", sentence, got, tc.endpoints, f.Notes)
		}
		if len(f.Notes) == 0 {
			t.Errorf("%s: says nothing", sentence)
		}
	}
}
