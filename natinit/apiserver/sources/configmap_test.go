package sources

import (
	"slices"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

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
