package nodeconf

import (
	"strings"
	"testing"
)

func TestCommandsTakeShellsApart(t *testing.T) {
	unit := func(exec string) files {
		return files{"/etc/systemd/system/kubelet.service": "[Service]\nEnvironment=\"X=--a --b\" Y=/y\nExecStart=" + exec + "\n",
			"/opt/start.sh": "#!/bin/sh\nset -e\n. /opt/env\nexec /usr/bin/kubelet \\\n  $OPTS \"--q=$Y\" >>/var/log/k 2>&1\n", "/opt/env": "OPTS='--s --t'\n"}
	}
	for sentence, tc := range map[string]struct{ exec, want string }{
		"sh -c with exec and a redirection":       {`/bin/sh -c "exec /usr/bin/kubelet --a=1 2>&1 | logger -t k"`, "/usr/bin/kubelet --a=1\nlogger -t k"},
		"variables that the shell expands":        {`/bin/bash -c 'kubelet $X --c=$Y'`, "kubelet --a --b --c=/y"},
		"variables that systemd expands":          {`/bin/bash -ec "kubelet ${X}"`, "kubelet --a --b"},
		"a script":                                {"/opt/start.sh --ignored", "set -e\n/usr/bin/kubelet --s --t --q=/y"},
		"a script that a shell is given":          {"/bin/bash /opt/start.sh", "set -e\n/usr/bin/kubelet --s --t --q=/y"},
		"a command behind another and an if":      {`/bin/sh -c 'if [ -f /x ]; then mkdir -p /a && kubelet --a; fi'`, "[ -f /x ]\nmkdir -p /a\nkubelet --a"},
		"a shell inside of a shell":               {`/bin/sh -c "nohup bash -c 'kubelet --a'"`, "kubelet --a"},
		"an assignment in front of the command":   {`/bin/sh -c 'A=b exec kubelet --x="$A"'`, "kubelet --x=b"},
		"one behind a pipe, in a loop, in a case": {`/bin/sh -c 'case $Y in /y) while true; do kubelet $X | tee /l; done;; esac'`, "true\nkubelet --a --b\ntee /l"},
		"home directories are not looked up":      {`/bin/sh -c 'kubelet --a=~/x ~root/y'`, "kubelet --a=~/x ~root/y"},
		"a command substitution is not run":       {"/bin/sh -c 'kubelet --ip=$(hostname -i) `id` --b'", "kubelet --ip= --b"},
	} {
		var got []string
		for _, c := range Commands(unit(tc.exec)) {
			got = append(got, strings.Join(c.Argv, " "))
		}
		if s := strings.Join(got, "\n"); s != tc.want {
			t.Errorf("%s: %q, want %q", sentence, s, tc.want)
		}
	}
}

func TestProgram(t *testing.T) {
	for _, tc := range []struct{ sentence, argv, name, want string }{
		{"itself", "/usr/bin/kubelet --a", "kubelet", "--a"},
		{"kOps' go-runner", "/go-runner --log-file=/x --also-stdout /usr/local/bin/kube-apiserver --a --b", "kube-apiserver", "--a --b"},
		{"hyperkube's word", "/hyperkube apiserver --a", "kube-apiserver", "--a"},
		{"hyperkube with the whole name", "hyperkube kube-apiserver --a", "kube-apiserver", "--a"},
		{"an image", "/usr/bin/docker run --net=host quay.io/x/kubelet:v1.30.1 --kubeconfig=/a", "kubelet", "--kubeconfig=/a"},
		{"an image by digest", "podman run x/k3s@sha256:abc server", "k3s", "server"},
		{"watch-termination of OpenShift", "watch-termination --x -- hyperkube kube-apiserver --openshift-config=/a", "kube-apiserver", "--openshift-config=/a"},
		{"another one", "/usr/bin/kube-proxy --a", "kubelet", "none"},
		{"a word of another program's", "/usr/bin/traefik apiserver --a", "kube-apiserver", "none"},
		{"the value of a flag", "/usr/bin/x --name=kubelet --a", "kubelet", "none"},
	} {
		args, ok := Program(strings.Fields(tc.argv), tc.name)
		got := strings.Join(args, " ")
		if !ok {
			got = "none"
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.sentence, got, tc.want)
		}
	}
}

func BenchmarkCommands(b *testing.B) {
	host := Trusted("")
	for b.Loop() {
		Commands(host)
	}
}
