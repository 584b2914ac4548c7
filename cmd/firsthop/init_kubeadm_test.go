package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
)

// kubeadmYAML is a control plane that is highly available by the Service IP itself.
const kubeadmYAML = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 192.0.2.1, bindPort: 6443}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
controlPlaneEndpoint: 10.96.0.1:443
networking: {serviceSubnet: 10.96.0.0/12}
`

func writeKubeadm(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeadm.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestInitKubeadmConfigPreparesANode: before kubeadm init no API server runs, and the Service IP must lead to the one that it
// starts, as the kubelet is told to use it.
func TestInitKubeadmConfigPreparesANode(t *testing.T) {
	n := newNode(t)
	if err := n.AddAddr("192.0.2.1/32"); err != nil {
		t.Fatal(err)
	}
	root, file := t.TempDir(), writeKubeadm(t, kubeadmYAML)
	args := []string{"init", "--root", root, "--kubeadm-config", file, "-o", "json"}
	r := n.run(args...).exits(0).report()
	checkProofs(t, r, vip4+" ok=true got=translated")
	if s := r.Servers; len(s) != 1 || s[0].Endpoint.Addr.String() != "192.0.2.1:6443" || !s[0].Used {
		t.Errorf("servers %+v", s)
	}
	if again := n.run(args...).exits(0).report(); len(again.Servers) != 1 {
		t.Errorf("a second run has the servers %+v", again.Servers)
	}
	n.run("init", "--root", root, "--kubeadm-config", file, "--prove", "answered").exits(bootstrap.ExitProof)

	// What the file said is saved: a boot needs it no more, before kubeadm as after it.
	n.run("init", "--root", root, "--boot", "-o", "json").exits(0)
	n.run("init", "--root", root, "--boot", "--kubeadm-config", "/none.yaml", "-o", "json").exits(0)

	// kubeadm has started the API server: the proof asks for it from now on.
	n.echo("tcp", "a", "192.0.2.1:6443")
	checkProofs(t, n.run(args...).exits(0).report(), vip4+" ok=true got=answered")
}

// TestInitKubeadmConfigRanksBelowFlags: addresses given by themselves go first.
func TestInitKubeadmConfigRanksBelowFlags(t *testing.T) {
	n := newNode(t)
	file := writeKubeadm(t, kubeadmYAML)
	for _, tc := range []struct {
		sentence          string
		args              []string
		service, endpoint string
	}{
		{"the file alone", nil, "10.96.0.1:443", "192.0.2.1:6443"},
		{"endpoints given", []string{"--endpoints", "192.0.2.9:6443"}, "10.96.0.1:443", "192.0.2.9:6443"},
		{"Service IPs given", []string{"--service-ips", "10.50.0.1:443"}, "10.50.0.1:443", "192.0.2.1:6443"},
	} {
		var found struct {
			Services  []struct{ Address string }
			Endpoints []struct{ Address string }
		}
		out := n.run(append([]string{"discover", "--root", t.TempDir(), "--kubeadm-config", file, "-o", "json"}, tc.args...)...).exits(0).stdout
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err)
		}
		if len(found.Services) != 1 || found.Services[0].Address != tc.service || len(found.Endpoints) != 1 || found.Endpoints[0].Address != tc.endpoint {
			t.Errorf("%s: %+v", tc.sentence, found)
		}
	}
}

// TestInitKubeadmConfigRefusesABadFile: nothing is changed for it.
func TestInitKubeadmConfigRefusesABadFile(t *testing.T) {
	n := newNode(t)
	pod := writeKubeadm(t, "apiVersion: v1\nkind: Pod\n")
	for _, command := range []string{"init", "install", "check", "discover"} {
		for file, want := range map[string]string{"/none/kubeadm.yaml": "--kubeadm-config /none/kubeadm.yaml: no such file", pod: "has no InitConfiguration"} {
			n.run(command, "--root", t.TempDir(), "--kubeadm-config", file).exits(64).says(want)
		}
	}
	r := n.run("FIRSTHOP_KUBEADM_CONFIG=/none/kubeadm.yaml", "discover").exits(64)
	if !strings.Contains(r.stderr, "/none/kubeadm.yaml") {
		t.Errorf("by environment: %s", r.stderr)
	}
}
