package sources

import (
	"path/filepath"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/hostproc"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// kubeletFiles are kubeconfigs of kubelets that kubeadm did not set up.
var kubeletFiles = [...]string{
	"/var/lib/kubelet/kubeconfig",                   // EKS, AKS, GKE, kOps, OpenShift
	"/var/lib/kubelet/kubeconfig-real",              // Gardener
	"/etc/kubernetes/kubeconfig-kubelet",            // Talos
	"/etc/kubernetes/kubelet/kubeconfig",            // Bottlerocket
	"/etc/kubernetes/kubelet-kubeconfig",            // Typhoon and other Ignition set-ups
	"/etc/kubernetes/kubelet.kubeconfig",            // guides for binaries, kubeasz
	"/opt/kubernetes/cfg/kubelet.kubeconfig",        //
	"/etc/kubernetes/ssl/kubecfg-kube-node.yaml",    // RKE 1
	"/root/cdk/kubelet/kubeconfig",                  // Charmed Kubernetes
	"/var/lib/k0s/kubelet.conf",                     // k0s
	"/var/lib/kubelet/bootstrap-kubeconfig",         // while a node joins
	"/etc/kubernetes/bootstrap-kubeconfig",          //
	"/var/lib/kubelet/kubeconfig-bootstrap",         //
	"/var/lib/k0s/kubelet-bootstrap.conf",           //
	"/etc/kubernetes/kubelet/bootstrap.conf",        //
	"/etc/kubernetes/kubelet/bootstrap-kubeconfig",  //
	"/etc/kubernetes/bootstrap-kubelet.kubeconfig",  //
	"/opt/kubernetes/cfg/bootstrap.kubeconfig",      //
	"/var/lib/kubelet/bootstrap-kubelet.kubeconfig", //
}

func kubeletSource(h *host) Finding {
	f := Finding{Source: apiserver.SourceKubelet}
	var paths []string
	add := func(p string) {
		own := filepath.Dir(p) == "/etc/kubernetes" && slices.Contains(kubeadmFiles[:], filepath.Base(p))
		if filepath.IsAbs(p) && !own && !slices.Contains(paths, p) { // kubeadm's are read there
			paths = append(paths, p)
		}
	}
	for _, k := range nodeconf.Kubelets(h, h.commands()) {
		for _, p := range k.Args.Kubeconfigs() {
			add(p)
		}
	}
	for _, p := range kubeletFiles {
		add(p)
	}
	found := false
	for _, p := range paths {
		found = h.addKubeconfig(&f, p) || found
	}
	if found {
		return f
	}
	// The most work last: a kubelet that runs with flags from elsewhere.
	for _, p := range h.runningKubelet() {
		add(p)
		found = h.addKubeconfig(&f, p) || found
	}
	if !found {
		f.Notef("no kubelet's kubeconfig in the known places, in a service that runs kubelet, or on a running kubelet's command line")
	}
	return f
}

// runningKubelet gives the kubeconfigs of the kubelet that systemd or OpenRC has started. Any user may call a process
// kubelet and give it arguments, so another one does not count.
func (h *host) runningKubelet() []string {
	units := slices.Clone(nodeconf.KubeletUnits)
	for _, k := range h.running("kubelet") {
		units = append(units, k.Service)
	}
	procs := hostproc.Config{Root: h.root}
	running, err := procs.Units(units...)
	if err != nil {
		return nil
	}
	for _, p := range running {
		if paths := nodeconf.Flags(procs.Args(p)).Kubeconfigs(); len(paths) > 0 {
			return paths
		}
	}
	return nil
}
