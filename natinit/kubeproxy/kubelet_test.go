package kubeproxy

import (
	"os"
	"path/filepath"
	"testing"
)

func TestKubeletHasOutlivesAReboot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"1111/containers/coredns", "2222/volumes/kube-proxy"} {
		mkdir(t, filepath.Join(root, "var/lib/kubelet/pods", dir))
	}
	if got := KubeletHas(root); len(got) != 0 {
		t.Errorf("found %q, where there is none", got)
	}
	const want = "/var/lib/kubelet/pods/3333/containers/kube-proxy"
	mkdir(t, root+want)
	if got := KubeletHas(root); len(got) != 1 || got[0] != want {
		t.Errorf("found %q, want %s", got, want)
	}
}

func TestKubeletHasIgnoresTenants(t *testing.T) {
	root := t.TempDir()
	mkdir(t, root+"/var/lib/kubelet/pods/3333/containers/kube-proxy")
	mkdir(t, root+"/var/log/pods/tenant_kube-proxy_3333")
	mkdir(t, root+"/var/lib/kubelet/pods/4444/containers/kube-proxy")
	mkdir(t, root+"/var/log/pods/kube-system_kube-proxy-abcde_4444")
	if got := KubeletHas(root); len(got) != 1 || filepath.Base(filepath.Dir(filepath.Dir(got[0]))) != "4444" {
		t.Errorf("found %q, want that of kube-system", got)
	}
	if err := os.Chmod(root+"/var/lib/kubelet/pods", 0o777); err != nil {
		t.Fatal(err)
	}
	if got := KubeletHas(root); len(got) != 0 {
		t.Errorf("found %q, where everybody may make a pod", got)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}
