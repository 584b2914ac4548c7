package nodeconf

import (
	"strings"
	"testing"
)

func TestOpenRCCommands(t *testing.T) {
	for sentence, tc := range map[string]struct {
		files files
		want  string
	}{
		"the installer of k3s": {files{"/etc/init.d/k3s": "#!/sbin/openrc-run\ndepend() {\n    after network-online\n    want cgroups\n}\nstart_pre() {\n    rm -f /tmp/k3s.*\n}\nsupervisor=supervise-daemon\nname=k3s\ncommand=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--service-cidr' \\\n\t'10.45.0.0/16' \\\n    >>/var/log/k3s.log 2>&1\"\n"},
			"/usr/local/bin/k3s server --service-cidr 10.45.0.0/16"},
		"the package of Alpine has its flags in conf.d": {files{"/etc/conf.d/k3s": "K3S_OPTS=\"--node-ip 10.0.0.1\" # mine\n", "/etc/init.d/k3s": "command=/usr/bin/k3s\ncommand_args=\"${K3S_EXEC:-server} ${K3S_OPTS}\"\n"},
			"/usr/bin/k3s server --node-ip 10.0.0.1"},
		"the kubelet of Alpine": {files{"/etc/conf.d/kubelet": "command_args=\"--kubeconfig=/etc/kubernetes/kubelet.conf\"\n", "/var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--x=y\"\n",
			"/etc/init.d/kubelet": "name=\"Kubelet\"\n[ -f /var/lib/kubelet/kubeadm-flags.env ] && . /var/lib/kubelet/kubeadm-flags.env\ncommand=\"/usr/bin/kubelet\"\ncommand_args=\"${command_args} ${KUBELET_KUBEADM_ARGS}\"\n: ${output_log:=/var/log/$RC_SVCNAME.log}\n"},
			"/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf --x=y"},
		"appended arguments":                 {files{"/etc/init.d/k3s-a": "command=/k3s\ncommand_args=agent\ncommand_args+=\" --server https://a\"\n"}, "/k3s agent --server https://a"},
		"a script of another service is not": {files{"/etc/init.d/sshd": "command=/sshd\n"}, ""},
		"runit":                              {files{"/etc/service/kubelet/run": "#!/bin/sh\nexec 2>&1\nexec chpst -u root kubelet --a\n"}, "chpst -u root kubelet --a"},
	} {
		var got []string
		for _, c := range Commands(tc.files) {
			got = append(got, strings.Join(c.Argv, " "))
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}
