package bootstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/proof"
)

func TestBootArgsNameTheFileForKubeadm(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "etc/kubeadm.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "kubeadm.yaml")
	for _, tc := range []struct {
		sentence, file string
		mode           os.FileMode
		want, why      string
	}{
		{"a file of the host that only root may write", file, 0o644, "/etc/kubeadm.yaml", ""},
		{"one that others may write is read once, not at each boot", file, 0o666, "", "writable by everybody"},
		{"one of the container is not there at boot", other, 0o644, "", "of this container"},
		{"none", "", 0o644, "", ""},
	} {
		if err := os.Chmod(file, tc.mode); err != nil {
			t.Fatal(err)
		}
		s := &stage{Config: Config{Kubeadm: tc.file, UDP: true}, Places: mounts.Places{HostRoot: root}, settings: settings{scope: ScopeAll}}
		args := s.bootArgs()
		i := slices.Index(args, "--kubeadm-config")
		if got := i >= 0 && args[i+1] == tc.want; got != (tc.want != "") {
			t.Errorf("%s: %q", tc.sentence, args)
		}
		_, err := s.kubeadmAtBoot()
		if (err == nil) != (tc.why == "") || err != nil && !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: %v, want %q", tc.sentence, err, tc.why)
		}
	}
}

func TestStrengthBeforeKubeadm(t *testing.T) {
	given := discover.Explicit{Kubeadm: &sources.Finding{}}
	for _, tc := range []struct {
		sentence string
		prove    proof.Strength
		given    discover.Explicit
		state    apiserver.State
		want     proof.Strength
	}{
		{"kubeadm has not run: nothing answers", proof.Auto, given, apiserver.Dead, proof.Translated},
		{"it has: a server answers", proof.Auto, given, apiserver.Live, proof.Answered},
		{"one that is not ready answers too", proof.Auto, given, apiserver.NotReady, proof.Answered},
		{"without the file a dead server is a fault", proof.Auto, discover.Explicit{}, apiserver.Dead, proof.Answered},
		{"what the operator asks for counts", proof.Ready, given, apiserver.Dead, proof.Ready},
	} {
		s := &stage{settings: settings{prove: tc.prove, given: tc.given}, found: &discover.Result{Endpoints: []discover.Endpoint{{State: tc.state}}}}
		if got := s.strength(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.sentence, got, tc.want)
		}
	}
}
