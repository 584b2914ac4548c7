package sources

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestServerSourceReadsStaticPods(t *testing.T) {
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

func TestServerSourceReadsServices(t *testing.T) {
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

// The files below follow the formats that installers and public guides of the
// products write.

func pod(command, args string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver, namespace: kube-system}\nspec:\n  hostNetwork: true\n  containers:\n  - name: kube-apiserver\n    image: x\n    command: [" + command + "]\n    args: [" + args + "]\n"
}
