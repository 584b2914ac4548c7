package kubeproxy

import (
	"path"
	"strings"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// pod is one that the kubelet keeps a directory for, with a container named kube-proxy.
type pod struct {
	uid string
	dir string // of the container, as the host sees it
}

// podsOf finds the pods of kube-proxy that the kubelet has on this node. A kubelet with another --root-dir is not found.
//
// Every tenant may name a container kube-proxy. The directory of a pod's logs has its namespace in its name: only
// kube-system counts, where only administrators may start pods. A pod without such a directory, on a node that keeps
// no logs over a reboot, counts too.
func podsOf(root string) []pod {
	files := hostfs.FS{Root: root}
	var found []pod
	for _, dir := range files.Glob("/var/lib/kubelet/pods/*/containers/kube-proxy") {
		if files.CheckTrusted(dir) != nil {
			continue
		}
		uid := path.Base(path.Dir(path.Dir(dir)))
		ours := true
		for _, logs := range files.Glob("/var/log/pods/*_" + uid) {
			namespace, _, _ := strings.Cut(path.Base(logs), "_")
			ours = ours && namespace == "kube-system"
		}
		if ours {
			found = append(found, pod{uid, dir})
		}
	}
	return found
}

// KubeletHas are the directories that the kubelet keeps for the containers of kube-proxy, as the host sees them. They
// outlive a reboot, so that before the kubelet starts they tell that it will start a kube-proxy: at a boot, neither a
// process nor a rule does.
func KubeletHas(root string) []string {
	var dirs []string
	for _, p := range podsOf(root) {
		dirs = append(dirs, p.dir)
	}
	return dirs
}
