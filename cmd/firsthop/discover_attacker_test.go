package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// evilServer is where the attacker's files want the node to go.
const evilServer = "192.0.2.66"

// world makes a node's /etc and /var/lib in a mount namespace, has a scenario put files there, and becomes firsthop.
// $1 is the test's directory, $2 the scenario. The kubelet's kubeconfig is root's, and its plugin the control: where it
// does not run, the test has shown nothing.
const world = `set -e
trap 'exit 99' EXIT
D=$1 scenario=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs /mnt; mkdir /mnt/u /mnt/w /mnt/lib
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc
mount --bind /mnt/lib /var/lib
mkdir -p /etc/kubernetes /var/lib/kubelet /etc/systemd/system /etc/rancher/k3s /etc/default; rm -f /etc/default/kubelet
sed "s#COMMAND#$D/good#; s#SERVER#https://127.0.0.1:7445#" "$D/template" >/etc/kubernetes/kubelet.conf
. "$D/$scenario.sh"
trap - EXIT
exec "$@"
`

// attacker is a user with a process and files. What the scenarios do is root's carelessness: it is what a user can wait for.
type attacker struct {
	node
	dir string
}

func newAttacker(t *testing.T) attacker {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be attacked")
	}
	a := attacker{node: newNode(t)}
	var err error
	if a.dir, err = os.MkdirTemp("", "firsthop-attacker-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(a.dir) })
	a.must(os.Chmod(a.dir, 0o755))
	a.must(os.Mkdir(a.dir+"/u", 0o755))
	a.write("world", world, 0o644)
	a.write("good", "#!/bin/sh\necho >>"+a.dir+"/ran\nexit 1\n", 0o755)
	a.api().Close()
	a.write("u/evil", "#!/bin/sh\nid >>"+a.dir+"/u/pwned\nchmod 666 "+a.dir+"/u/pwned\nexit 1\n", 0o755)
	for _, f := range []string{"u", "u/kc", "u/evil"} {
		a.must(os.Chown(filepath.Join(a.dir, f), 65534, 65534))
	}
	return a
}

// api starts the node's API server, and has the kubeconfigs name its CA.
func (a attacker) api() *standin.APIServer {
	a.Helper()
	const template = `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "SERVER", certificate-authority-data: %s}}],
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: COMMAND, interactiveMode: Never}}}]}
`
	api := a.serving()
	ca, err := os.ReadFile(a.Dir + "/ca.crt")
	a.must(err)
	text := fmt.Sprintf(template, base64.StdEncoding.EncodeToString(ca))
	a.write("template", text, 0o644)
	a.write("u/kc", strings.NewReplacer("SERVER", "https://"+evilServer+":6443", "COMMAND", a.dir+"/u/evil").Replace(text), 0o644)
	return api
}

func (a attacker) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

func (a attacker) write(name, text string, mode os.FileMode) {
	a.Helper()
	a.must(os.WriteFile(filepath.Join(a.dir, name), []byte(text), mode))
	a.must(os.Chmod(filepath.Join(a.dir, name), mode))
}

// runs starts a process of the user's with a name and arguments of his choice; wrap puts it into namespaces of its own.
func (a attacker) runs(name string, wrap ...string) {
	a.Helper()
	line := append([]string{"--reuid=65534", "--regid=65534", "--clear-groups"}, wrap...)
	line = append(line, "sh", "-c", "printf "+name+" >/proc/self/comm; exec 3<&0; printf "+name+" >/proc/$$/comm 2>/dev/null; echo; read line <&3", name,
		"--kubeconfig="+a.dir+"/u/kc", "--bootstrap-kubeconfig="+a.dir+"/u/kc", "--root-dir="+a.dir+"/u", "--config="+a.dir+"/u/kc")
	cmd := a.Command(a.Context(), "setpriv", line...)
	cmd.Dir = "/"
	stdin, err := cmd.StdinPipe()
	a.must(err)
	stdout, err := cmd.StdoutPipe()
	a.must(err)
	a.must(cmd.Start())
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
}

// inWorld prepares firsthop in the world of a scenario.
func (a attacker) inWorld(scenario string, args ...string) *lab.Cmd {
	line := []string{"-m", "--propagation", "private", "sh", a.dir + "/world", a.dir, scenario, firsthop, args[0],
		"--bpffs", a.BPFFS, "--cgroup", a.Cgroup, "--state-dir", a.StateDir, "--run-dir", a.RunDir}
	cmd := a.Command(a.Context(), "unshare", append(line, args[1:]...)...)
	cmd.Env = withEnv(nil)
	return cmd
}

func (a attacker) needsWorlds() {
	a.Helper()
	a.write("nothing.sh", "", 0o644)
	out, err := a.Command(a.Context(), "unshare", "-m", "--propagation", "private", "sh", a.dir+"/world", a.dir, "nothing", "true").CombinedOutput()
	if err != nil {
		a.Skipf("cannot make a world of mounts here: %v\n%s", err, out)
	}
}

func (a attacker) pwned() string {
	b, _ := os.ReadFile(a.dir + "/u/pwned")
	return string(b)
}

func (a attacker) ran() int {
	b, _ := os.ReadFile(a.dir + "/ran")
	return len(b)
}

// carelessness are ways in which files of a user come to places that firsthop reads. U is the user's directory; ours
// become his where he may write.
var carelessness = map[string]string{
	"nothing":                      ``,
	"link to a user's file":        `ln -s "$D/u/kc" /var/lib/kubelet/kubeconfig; ln -s "$D/u/kc" /etc/kubernetes/admin.conf`,
	"user's file in its place":     `cp "$D/u/kc" /var/lib/kubelet/kubeconfig; chown nobody /var/lib/kubelet/kubeconfig`,
	"file that all may write":      `cp "$D/u/kc" /var/lib/kubelet/kubeconfig; chmod 666 /var/lib/kubelet/kubeconfig`,
	"user's directory":             `cp "$D/u/kc" /var/lib/kubelet/kubeconfig; chown nobody /var/lib/kubelet`,
	"group's directory":            `cp "$D/u/kc" /var/lib/kubelet/kubeconfig; chgrp 65534 /var/lib/kubelet; chmod 775 /var/lib/kubelet`,
	"directory that all may write": `mkdir -m 777 /var/lib/open; cp "$D/u/kc" /var/lib/open/kc; printf '[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/var/lib/open/kc\n' >/etc/systemd/system/kubelet.service`,
	"user's file in a sticky directory": `mkdir -m 1777 /var/lib/tmp; cp "$D/u/kc" /var/lib/tmp/kc; chown nobody /var/lib/tmp/kc
		printf '[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/var/lib/tmp/kc\n' >/etc/systemd/system/kubelet.service`,
	"unit of a user's":    `printf '[Service]\nExecStart=/usr/bin/kubelet --kubeconfig='"$D"'/u/kc\n' >/etc/systemd/system/kubelet.service; chown nobody /etc/systemd/system/kubelet.service`,
	"unit that names one": `printf '[Service]\nExecStart=/usr/bin/kubelet --kubeconfig='"$D"'/u/kc\n' >/etc/systemd/system/kubelet.service`,
	"drop-ins of a user": `mkdir /etc/systemd/system/kubelet.service.d; printf '[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/var/lib/k\n' >/etc/systemd/system/kubelet.service.d/a.conf
		cp "$D/u/kc" /var/lib/k; chown -R nobody /etc/systemd/system/kubelet.service.d`,
	"environment file of a user": `printf '[Service]\nEnvironmentFile='"$D"'/u/env\nExecStart=/usr/bin/kubelet $A\n' >/etc/systemd/system/kubelet.service
		echo "A=--kubeconfig=/var/lib/k" >"$D/u/env"; cp "$D/u/kc" /var/lib/k; chown nobody "$D/u/env"`,
	"defaults of a user":        `echo "KUBELET_EXTRA_ARGS=--kubeconfig=/var/lib/k" >/etc/default/kubelet; cp "$D/u/kc" /var/lib/k; chown nobody /etc/default/kubelet`,
	"k3s's settings of a user":  `printf 'server: https://192.0.2.66:6443\ntoken: x\n' >/etc/rancher/k3s/config.yaml; chown nobody /etc/rancher/k3s/config.yaml`,
	"static pod of a user":      `mkdir /etc/kubernetes/manifests; printf 'spec: {containers: [{name: kube-apiserver, command: [kube-apiserver, --advertise-address=192.0.2.66, --service-cluster-ip-range=10.66.0.0/16]}]}' >/etc/kubernetes/manifests/kube-apiserver.yaml; chmod 666 /etc/kubernetes/manifests/kube-apiserver.yaml`,
	"user's plugin":             `sed "s#COMMAND#$D/u/evil#; s#SERVER#https://127.0.0.1:7446#" "$D/template" >/var/lib/kubelet/kubeconfig`,
	"plugin in a user's place":  `cp "$D/u/evil" "$D/u/mine"; chown root "$D/u/mine"; sed "s#COMMAND#$D/u/mine#; s#SERVER#https://127.0.0.1:7446#" "$D/template" >/var/lib/kubelet/kubeconfig`,
	"link to a user's plugin":   `ln -s "$D/u/evil" /var/lib/plugin; sed "s#COMMAND#/var/lib/plugin#; s#SERVER#https://127.0.0.1:7446#" "$D/template" >/var/lib/kubelet/kubeconfig`,
	"second name of root's own": `ln -f "$D/good" "$D/u/hard"; sed "s#COMMAND#$D/u/hard#; s#SERVER#https://127.0.0.1:7446#" "$D/template" >/var/lib/hard; ln -s "$D/u" /var/lib/kubelet/pki; cp "$D/u/kc" "$D/u/root"; ln -s pki/root /var/lib/kubelet/kubeconfig`,
}

// TestDiscoverRunsNothingOfAnAttacker has every command meet what an unprivileged user may have prepared. Nothing of his runs as root,
// and no address of his gets into an answer.
func TestDiscoverRunsNothingOfAnAttacker(t *testing.T) {
	a := newAttacker(t)
	for _, name := range []string{"kubelet", "k3s", "k3s-agent", "kube-proxy", "systemd", "kubelite"} {
		a.runs(name)
	}
	a.runs("kubelet", "unshare", "-Ur")
	a.runs("kube-proxy", "unshare", "-Ur")
	a.runs("kubelet", "unshare", "-Urpmnf", "--mount-proc")
	a.needsWorlds()
	commands := [][]string{
		{"discover", "-o", "json"}, {"check"}, {"status"}, {"doctor"}, {"units"}, {"nat"},
		{"init", "--dry-run"}, {"init", "--persist", "off"}, {"uninstall", "--dry-run"}, {"install", "--dry-run"},
	}
	for scenario := range carelessness {
		t.Run(scenario, func(t *testing.T) {
			a.T = t
			_ = os.Remove(a.dir + "/u/pwned")
			before := a.ran()
			var api *standin.APIServer
			for i, args := range slices.Concat(commands, commands[:1], commands[len(commands)-4:]) { // the second time with an API server
				if i == len(commands) {
					api = a.api()
				}
				cmd := a.inWorldOf(scenario, args...)
				out, _ := cmd.CombinedOutput()
				if cmd.ProcessState.ExitCode() == 99 {
					t.Fatalf("the scenario itself failed:\n%s", out)
				}
				if who := a.pwned(); who != "" {
					t.Fatalf("firsthop %s ran the attacker's program as %s%s", args, who, out)
				}
				if said := withoutIgnored(string(out)); strings.Contains(said, evilServer) || strings.Contains(said, "10.66.0.1") {
					t.Errorf("firsthop %s believed the attacker:\n%s", args, said)
				}
			}
			api.Close()
			if a.ran() == before {
				t.Error("the kubelet's own plugin did not run: this shows nothing")
			}
		})
	}
	a.T = t
	a.api()
	// Neither does a name let an uninstall cut the node off, or leave it to a kube-proxy that is none.
	out, err := a.inWorldOf("nothing", initArgs()...).CombinedOutput()
	if err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	if out, err = a.inWorldOf("nothing", "uninstall").CombinedOutput(); err == nil || !strings.Contains(string(out), "nothing else serves") {
		t.Errorf("uninstall beside a process named kube-proxy: %v\n%s", err, out)
	}
	if out, err = a.inWorldOf("nothing", initArgs("--forbid-feature", "connect4")...).CombinedOutput(); err == nil || !strings.Contains(string(out), "nothing to fall back to") {
		t.Errorf("init on an unsupported kernel beside a process named kube-proxy: %v\n%s", err, out)
	}
	if out, _ := a.inWorldOf("nothing", "doctor").CombinedOutput(); strings.Contains(string(out), "kube-proxy runs") {
		t.Errorf("doctor takes a user's process for kube-proxy:\n%s", out)
	}
}

// withoutIgnored leaves out the lines that say that a file was ignored: they may name it, not what is in it.
func withoutIgnored(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "ignored /") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// inWorldOf is inWorld by the name of a scenario in carelessness.
func (a attacker) inWorldOf(name string, args ...string) *lab.Cmd {
	a.Helper()
	file := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, name)
	a.write(file+".sh", carelessness[name]+"\n", 0o644)
	return a.inWorld(file, args...)
}

// TestDiscoverIgnoresAnAttackerDuringAnOutage: while no API server answers, the runtime looks everywhere for one, again and again.
func TestDiscoverIgnoresAnAttackerDuringAnOutage(t *testing.T) {
	a := newAttacker(t)
	a.needsWorlds()
	for _, name := range []string{"kubelet", "k3s", "kube-proxy"} {
		a.runs(name)
	}
	for _, scenario := range []string{"link to a user's file", "user's plugin", "group's directory"} {
		t.Run(scenario, func(t *testing.T) {
			a.T = t
			api := a.api()
			if out, err := a.inWorldOf("nothing", initArgs()...).CombinedOutput(); err != nil {
				t.Fatalf("init: %v\n%s", err, out)
			}
			api.Close()
			client := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", certificate-authority: %s/ca.crt}}], users: [{name: u, user: {token: t}}]}`, a.Dir)
			a.write("client", client, 0o600)
			before := a.ran()
			cmd := a.inWorldOf(scenario, "run", "--kubeconfig", a.dir+"/client", "--node-name", "n1", "--pods=false", "--node-status=false",
				"--healthz-bind-address", "off", "--metrics-bind-address", "off", "--endpoints", "")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			a.must(cmd.Start())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill(); <-ended }()
			// Twice: what comes after it in a look had its turn.
			lab.Await(t, "the kubelet's own plugin to run in the outage", func() bool { return a.ran() > before+1 || len(ended) > 0 })
			if who := a.pwned(); who != "" {
				t.Fatalf("run ran the attacker's program as %s", who)
			}
			if len(ended) > 0 {
				t.Fatalf("run ended:\n%s", out.String())
			}
		})
	}
}
