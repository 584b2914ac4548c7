package sources

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

func TestKubeadmFileSource(t *testing.T) {
	const v4, v3 = "apiVersion: kubeadm.k8s.io/v1beta4\n", "apiVersion: kubeadm.k8s.io/v1beta3\n"
	const cluster, initial, join = v4 + "kind: ClusterConfiguration\n", v4 + "kind: InitConfiguration\n", v4 + "kind: JoinConfiguration\n"
	for sentence, tc := range map[string]struct {
		file      string
		service   string
		isDefault bool
		endpoints []string
		notes     string
	}{
		"high availability through the Service IP itself": {
			initial + "localAPIEndpoint: {advertiseAddress: 10.0.0.11, bindPort: 6443}\n---\n" + cluster + "controlPlaneEndpoint: 10.96.0.1:443\nnetworking: {serviceSubnet: 10.96.0.0/12}\n",
			"10.96.0.1:443", false, []string{"10.0.0.11:6443"}, "is the Service IP itself"},
		"a load balancer, another range and port": {
			cluster + "controlPlaneEndpoint: cp.example:8443\nnetworking:\n  serviceSubnet: 10.50.0.0/16,fd00:50::/112\n---\n" + initial + "localAPIEndpoint:\n  advertiseAddress: 10.0.0.11\n  bindPort: 7443\n",
			"10.50.0.1:443", false, []string{"10.0.0.11:7443", "cp.example:8443"}, ""},
		"an endpoint of the control plane without a port has the bind port": {
			cluster + "controlPlaneEndpoint: cp.example\n---\n" + initial + "localAPIEndpoint: {advertiseAddress: 10.0.0.11, bindPort: 7443}\n",
			"10.96.0.1:443", false, []string{"10.0.0.11:7443", "cp.example:7443"}, ""},
		"IPv6": {
			cluster + "controlPlaneEndpoint: '[fd00::10]:6443'\nnetworking: {serviceSubnet: 'fd00:96::/112'}\n---\n" + initial + "localAPIEndpoint: {advertiseAddress: 'fd00::11'}\n",
			"[fd00:96::1]:443", false, []string{"[fd00::11]:6443", "[fd00::10]:6443"}, ""},
		"nothing but the kind: kubeadm's defaults, and the address of the default route": {
			cluster, "10.96.0.1:443", false, []string{"10.0.0.9:6443"}, "kubeadm's default"},
		"v1beta3, with arguments as a map": {
			v3 + "kind: ClusterConfiguration\napiServer:\n  extraArgs: {service-cluster-ip-range: 10.60.0.0/16, advertise-address: 10.0.0.12, secure-port: \"8443\"}\n",
			"10.60.0.1:443", false, []string{"10.0.0.12:8443"}, ""},
		"v1beta4, with arguments as a list": {
			cluster + "apiServer:\n  extraArgs:\n  - {name: service-cluster-ip-range, value: 10.60.0.0/16}\n", "10.60.0.1:443", false, []string{"10.0.0.9:6443"}, ""},
		"the Service IP with another port": {
			cluster + "controlPlaneEndpoint: 10.96.0.1:6443\n", "10.96.0.1:443", false, []string{"10.0.0.9:6443"}, "write 10.96.0.1:443"},
		"documents of others, comments, and JSON": {
			"# x\n---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nserviceSubnet: 1\n---\n{\"apiVersion\":\"kubeadm.k8s.io/v1beta4\",\"kind\":\"InitConfiguration\",\"localAPIEndpoint\":{\"advertiseAddress\":\"10.0.0.11\"}}\n---\n",
			"10.96.0.1:443", false, []string{"10.0.0.11:6443"}, ""},
		"joining as a worker": {
			join + "discovery: {bootstrapToken: {apiServerEndpoint: '10.0.0.11:6443', token: x}}\n", "10.96.0.1:443", true, []string{"10.0.0.11:6443"}, "names no Service range"},
		"joining by the Service IP: it is no guess then": {
			join + "discovery: {bootstrapToken: {apiServerEndpoint: '10.96.0.1:443', token: x}}\n", "10.96.0.1:443", false, nil, "--endpoints"},
		"joining the control plane": {
			join + "controlPlane: {localAPIEndpoint: {advertiseAddress: 10.0.0.12}}\ndiscovery: {bootstrapToken: {apiServerEndpoint: '10.0.0.11:6443'}}\n---\n" + cluster + "networking: {serviceSubnet: 10.50.0.0/16}\n",
			"10.50.0.1:443", false, []string{"10.0.0.11:6443", "10.0.0.12:6443"}, ""},
		"joining with a kubeconfig": {
			join + "discovery: {file: {kubeConfigPath: /etc/discovery.conf}}\n", "10.96.0.1:443", true, []string{"10.0.0.3:6443"}, ""},
		"joining with a kubeconfig from elsewhere": {
			join + "discovery: {file: {kubeConfigPath: 'https://a/k'}}\n", "10.96.0.1:443", true, nil, "is not read"},
		"an address that stands for all": {
			initial + "localAPIEndpoint: {advertiseAddress: 0.0.0.0}\n", "10.96.0.1:443", false, []string{"10.0.0.9:6443"}, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			root := t.TempDir()
			apitest.Write(t, root, "/etc/discovery.conf", apitest.Kubeconfig("https://10.0.0.3:6443"))
			apitest.Write(t, root, "/kubeadm.yaml", tc.file)
			h := testHost(root)
			h.address = func() (netip.Addr, bool) { return netip.MustParseAddr("10.0.0.9"), true }
			f, err := kubeadmFileSource(h, root+"/kubeadm.yaml")
			if err != nil {
				t.Fatal(err)
			}
			if got := apitest.Strings(f.Services); !slices.Equal(got, []string{tc.service}) || f.IsDefault(f.Services[0]) != tc.isDefault {
				t.Errorf("services %v, defaults %v, want %s", got, f.DefaultServices, tc.service)
			}
			if got := apitest.Strings(f.Endpoints); !slices.Equal(got, tc.endpoints) {
				t.Errorf("endpoints %v, want %v", got, tc.endpoints)
			}
			if notes := strings.Join(f.Notes, "\n"); !strings.Contains(notes, tc.notes) {
				t.Errorf("notes lack %q:\n%s", tc.notes, notes)
			}
		})
	}
}

func TestKubeadmFileSourceRefuses(t *testing.T) {
	for want, text := range map[string]string{
		"has no InitConfiguration":                   "apiVersion: v1\nkind: Pod\n",
		"not YAML":                                   "{{\n",
		"ClusterConfiguration: ":                     "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking: 1\n",
		"InitConfiguration, ClusterConfiguration or": "",
	} {
		root := t.TempDir()
		apitest.Write(t, root, "/k", text)
		if _, err := KubeadmFile("", root+"/k"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := KubeadmFile("", "/none/kubeadm.yaml"); err == nil || !strings.Contains(err.Error(), "/none/kubeadm.yaml: no such file") {
		t.Errorf("no file: %v", err)
	}
}

func FuzzKubeadmFile(f *testing.F) {
	for _, s := range []string{"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\ncontrolPlaneEndpoint: a:1\nnetworking: {serviceSubnet: 10.96.0.0/12}\napiServer: {extraArgs: [{name: a, value: b}]}\n---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 10.0.0.1, bindPort: 1}\n",
		"apiVersion: kubeadm.k8s.io/v1beta3\nkind: JoinConfiguration\ndiscovery: {bootstrapToken: {apiServerEndpoint: '10.96.0.1:443'}, file: {kubeConfigPath: /x}}\ncontrolPlane: {}\n", "---\n---\n", "{}"} {
		f.Add(s)
	}
	h := testHost(f.TempDir())
	f.Fuzz(func(t *testing.T, in string) {
		file, err := parseKubeadmFile([]byte(in))
		if err != nil {
			return
		}
		var found Finding
		found.addKubeadmFile(h, "x", file)
		for _, s := range found.Services {
			apitest.CheckAddr(t, s)
		}
		for _, e := range found.Endpoints {
			if e.Resolved() {
				apitest.CheckAddr(t, e.Addr)
			}
		}
	})
}
