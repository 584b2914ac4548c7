package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// kubeletOf makes a kubelet's kubeconfig below a host's root.
func kubeletOf(t *testing.T, root, server string) (path string) {
	t.Helper()
	path = filepath.Join(root, "etc/kubernetes/kubelet.conf")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: kubernetes, cluster: {server: \"" + server + "\"}}]\n" +
		"contexts: [{name: c, context: {cluster: kubernetes, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {token: t}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestUninstallRefusesToStrand: a kubelet whose API server is the Service IP keeps its node from becoming Ready after a
// reboot, also where rules of kube-proxy serve that address now: the kubelet starts before kube-proxy does.
func TestUninstallRefusesToStrand(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	n.serveByRules(vip4)
	n.serveByRules(vip6)
	root := t.TempDir()
	path := kubeletOf(t, root, "https://"+vip4)
	before := n.snapshot()
	for _, line := range [][]string{{"uninstall"}, {"uninstall", "--dry-run"}} {
		r := n.run(append(line, "--root", root)...).exits(bootstrap.ExitStranded)
		r.says("/etc/kubernetes/kubelet.conf", "https://"+vip4, "https://"+server4, "systemctl restart kubelet", "--force")
		if r.stdout != "" {
			t.Errorf("it says on stdout:\n%s", r.stdout)
		}
		n.unchanged(before)
	}
	r := n.run("uninstall", "--root", root, "-o", "json").exits(bootstrap.ExitStranded)
	var failure struct {
		Error      string               `json:"error"`
		ExitCode   bootstrap.ExitCode   `json:"exit_code"`
		Dependents []diagnose.Dependent `json:"dependents"`
	}
	r.decode(&failure)
	if failure.ExitCode != bootstrap.ExitStranded || len(failure.Dependents) != 1 || failure.Error == "" {
		t.Fatalf("%+v", failure)
	}
	n.unchanged(before)
	// What it says helps.
	command := strings.ReplaceAll(failure.Dependents[0].Commands[0], "/etc/kubernetes/kubelet.conf", path)
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	n.run("uninstall", "--root", root).exits(0)
}

func TestUninstallForcedStillNamesDependents(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	root := t.TempDir()
	kubeletOf(t, root, "https://"+vip4)
	n.run("uninstall", "--root", root, "--dry-run", "--force").exits(0).says("would remove", "/etc/kubernetes/kubelet.conf")
	n.run("uninstall", "--root", root, "--force").exits(0).says("removed", "/etc/kubernetes/kubelet.conf", server4)
}

// TestUninstallDryRunRefusesAsTheRealOneDoes.
func TestUninstallDryRunRefusesAsTheRealOneDoes(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	real, dry := n.run("uninstall"), n.run("uninstall", "--dry-run")
	if real.code == 0 || dry.code != real.code || dry.stdout+dry.stderr != real.stdout+real.stderr {
		t.Errorf("dry run: %d %s%s\nreal: %d %s%s", dry.code, dry.stdout, dry.stderr, real.code, real.stdout, real.stderr)
	}
}

// TestDoctorKnowsWhatDependsOnTheServiceIP: such a node must have firsthop at its next boot.
func TestDoctorKnowsWhatDependsOnTheServiceIP(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	root := t.TempDir()
	doctor := func() diagnose.Finding {
		t.Helper()
		var r diagnose.DoctorReport
		if err := json.Unmarshal([]byte(n.run("doctor", "--root", root, "-o", "json").stdout), &r); err != nil {
			t.Fatal(err)
		}
		for _, d := range r.Findings {
			if d.Check == "dependents" {
				return d
			}
		}
		t.Fatal("no check of dependents")
		return diagnose.Finding{}
	}
	if d := doctor(); d.Grade != diagnose.OK {
		t.Errorf("without any: %+v", d)
	}
	kubeletOf(t, root, "https://"+vip4)
	d := doctor() // this instance isn't started at boot
	if d.Grade != diagnose.Fail || !strings.Contains(strings.Join(d.Evidence, " ")+d.Remedy, "/etc/kubernetes/kubelet.conf") {
		t.Errorf("with one: %+v", d)
	}
}
