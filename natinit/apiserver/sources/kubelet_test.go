package sources

import (
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

func TestKubeletSourceFindsTheKubeconfig(t *testing.T) {
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
