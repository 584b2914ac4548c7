package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/deploy"
)

func TestClusterInstallPrints(t *testing.T) {
	v, err := deploy.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	v.Image, v.Endpoints, v.KernelsBelow511, v.HostProc = "registry.example/firsthop:x", "192.0.2.1:6443", true, true
	files, err := deploy.Render(v)
	if err != nil {
		t.Fatal(err)
	}
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("hostProc: true\nimage: other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := plain(t, "cluster", "install", "--print", "--kubeconfig", "/nowhere", "--values", values, "--image", v.Image, "--endpoints", v.Endpoints, "--old-kernels").exits(0)
	if want := string(bytes.Join(files, []byte("---\n"))); r.stdout != want {
		t.Errorf("got\n%s\nwant\n%s", r.stdout, want)
	}
}

func TestClusterUsage(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(wrong, []byte("imagee: other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		line string
		code bootstrap.ExitCode
		says string
	}{
		{"cluster instal", 64, "did you mean install?"},
		{"cluster install --leave-ot x", 64, "did you mean --leave-out?"},
		{"cluster status now", 64, "takes no arguments"},
		{"cluster install --values /nowhere", 64, "--values"},
		{"cluster install --print --values " + wrong, 64, "imagee"},
		{"cluster status --output yaml", 64, "want text or json"},
		{"cluster status --kubeconfig /nowhere", 1, "/nowhere"},
	} {
		if r := plain(t, strings.Fields(tc.line)...).exits(tc.code); !strings.Contains(r.stderr, tc.says) {
			t.Errorf("%s says %q, want %q", tc.line, r.stderr, tc.says)
		}
	}
	r := plain(t, "cluster", "status", "-o", "json", "--kubeconfig", "/nowhere").exits(1)
	var f failure
	if err := json.Unmarshal([]byte(r.stdout), &f); err != nil || f.ExitCode != 1 || f.Error == "" {
		t.Errorf("%v: %s", err, r.stdout)
	}
}

// kubectl finds a program named kubectl-firsthop, and calls it with the words behind `kubectl firsthop`.
func TestClusterAsPluginOfKubectl(t *testing.T) {
	link := filepath.Join(t.TempDir(), pluginName)
	if err := os.Symlink(firsthop, link); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), link, "install", "--print")
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "kind: DaemonSet") {
		t.Errorf("%v: %s", err, out.String())
	}
}
