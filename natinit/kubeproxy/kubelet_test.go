package kubeproxy

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheKubeletsPodsOutliveAReboot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"1111/containers/coredns", "2222/volumes/kube-proxy"} {
		mkdir(t, filepath.Join(root, "var/lib/kubelet/pods", dir))
	}
	if got := KubeletHas(root); len(got) != 0 {
		t.Errorf("found %q, where there is none", got)
	}
	want := filepath.Join(root, "var/lib/kubelet/pods/3333/containers/kube-proxy")
	mkdir(t, want)
	if got := KubeletHas(root); len(got) != 1 || got[0] != want {
		t.Errorf("found %q, want %s", got, want)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}
