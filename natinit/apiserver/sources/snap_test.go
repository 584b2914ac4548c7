package sources

import (
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestSnapAndK0sSources(t *testing.T) {
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
