package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/proof"
	"github.com/firsthop/firsthop/test/lab"
)

// reboot takes away what a reboot does: pins, attachments, and what is in the run directory.
func (n node) reboot() {
	n.Helper()
	if err := os.RemoveAll(n.pins().Dir); err != nil {
		n.Fatal(err)
	}
	entries, err := os.ReadDir(n.RunDir)
	if err != nil {
		n.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.RunDir, e.Name())); err != nil {
			n.Fatal(err)
		}
	}
	lab.Await(n.T, "links without pins to detach", func() bool { return len(n.attached()) == 0 })
}

// kubeconfig puts a kubelet's credentials below a root.
func (n node) kubeconfig(root, server string) {
	n.Helper()
	path := filepath.Join(root, "etc/kubernetes/kubelet.conf")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.Fatal(err)
	}
	text := "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: " + server + "\ncurrent-context: x\ncontexts:\n- name: x\n  context:\n    cluster: c\n    user: u\nusers:\n- name: u\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
}

// TestInitKeepsGivenLoopbackServersOverAReboot: a control plane of one node can be given as 127.0.0.1.
func TestInitKeepsGivenLoopbackServersOverAReboot(t *testing.T) {
	n := newNode(t)
	n.serving()
	root := filepath.Join(n.Dir, "host")
	n.kubeconfig(root, "https://127.0.0.1:6444") // a node-local proxy's, as of k3s
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0)
	for _, line := range [][]string{{"init", "--boot"}, {"init"}, {"init", "--prove", "ready"}} {
		n.reboot()
		r := n.run(append(line, "--root", root, "-o", "json")...).exits(0).report()
		if len(r.Services) != 2 || len(r.Servers) != 2 || !r.Proven() {
			t.Errorf("%v: Services %+v, servers %+v, proofs %+v", line, r.Services, r.Servers, r.Proofs)
		}
		for _, p := range r.Proofs {
			if p.Got == proof.Translated {
				t.Errorf("%v: %+v", line, p)
			}
		}
		for _, s := range r.Servers {
			if s.Endpoint.Addr.Port() != 6443 {
				t.Errorf("%v: %s has become an endpoint", line, s.Endpoint)
			}
		}
		n.checkServes()
	}
}

// TestInitUsesNoLoopbackServersThatAreFound: 127.0.0.1 is another place in a pod.
func TestInitUsesNoLoopbackServersThatAreFound(t *testing.T) {
	for server, vip := range map[string]string{"https://127.0.0.1:6444": vip4, "https://[::1]:6444": vip6, "https://localhost:6444": vip4} {
		t.Run(server, func(t *testing.T) {
			n := newNode(t)
			n.serve("proxy", "127.0.0.1:6444", "[::1]:6444")
			n.kubeconfig(n.Dir, server)
			before := n.state()
			for range 2 { // what the first saved, the second would take up
				n.run("init", "--service-ips", vip, "--root", n.Dir).exits(bootstrap.ExitNotFound).says("6444")
			}
			n.stateUnchanged(before)
			if _, err := os.Stat(filepath.Join(n.StateDir, "apiserver.json")); err == nil {
				t.Error("it saved addresses")
			}
		})
	}
}

// TestInitRefusesAnExtraServiceAtTheFoundAPIService: that it is the API's address is known late, but it is a bad flag, which
// --best-effort doesn't excuse.
func TestInitRefusesAnExtraServiceAtTheFoundAPIService(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0)
	before, files := n.state(), n.tree(n.StateDir)
	for _, line := range [][]string{{"init"}, {"init", "--dry-run"}, {"init", "--best-effort"}, {"init", "--boot"}, {"install"}} {
		n.run(append(line, "--root", n.Dir, "--extra-service", "tcp/"+vip4+"=127.0.0.1:9")...).
			exits(bootstrap.ExitUsage).says("--extra-service", vip4, "is the API service")
		n.stateUnchanged(before)
		if got := n.tree(n.StateDir); !equalLines(got, files) {
			t.Errorf("%v: the state directory changed: %q, before %q", line, got, files)
		}
		n.run("status").exits(0).says("serving; proven")
	}
	n.checkServes()
	n.run("init", "--root", n.Dir, "--extra-service", "udp/"+vip4+"=127.0.0.1:9").exits(0) // another protocol is another Service
	n.checkServes()
}

func equalLines(a, b snapshot) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
