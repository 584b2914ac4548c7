package kubeproxy

import (
	"path/filepath"
	"slices"
)

// KubeletHas are the directories that the kubelet keeps for containers named
// kube-proxy, below the host's root. They outlive a reboot, so that before the
// kubelet starts they tell that it will start a kube-proxy: at a boot, neither a
// process nor a rule does. A kubelet with another --root-dir is not found.
func KubeletHas(root string) []string {
	const containers = "/var/lib/kubelet/pods/*/containers/kube-proxy"
	found, _ := filepath.Glob(filepath.Join("/", root, containers)) // the pattern is a good one
	slices.Sort(found)
	return found
}
