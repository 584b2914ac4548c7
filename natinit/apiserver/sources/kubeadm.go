package sources

import (
	"path/filepath"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// kubeadmFiles are the kubeconfigs that kubeadm writes, the node's own
// identity first. bootstrap-kubelet.conf holds a token that expires after a day.
var kubeadmFiles = [...]string{"kubelet.conf", "admin.conf", "super-admin.conf", "bootstrap-kubelet.conf"}

// manifestDir is where kubeadm, kOps and most others have static pods.
const manifestDir = "/etc/kubernetes/manifests"

func kubeadmSource(h *host) Finding {
	f := Finding{Source: apiserver.SourceKubeadm}
	found := false
	for _, name := range kubeadmFiles {
		found = h.addKubeconfig(&f, filepath.Join("/etc/kubernetes", name)) || found
	}
	found = f.addManifests(h, manifestDir) || found
	if !found {
		f.Notef("no kubeadm files in /etc/kubernetes")
	}
	return f
}
