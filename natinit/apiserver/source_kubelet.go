package apiserver

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/hostproc"
)

// kubeletFiles are kubeconfigs of kubelets that kubeadm did not set up.
var kubeletFiles = [...]string{
	"/var/lib/kubelet/kubeconfig",            // EKS, AKS, GKE, kOps, OpenShift
	"/etc/kubernetes/kubeconfig-kubelet",     // Talos
	"/etc/kubernetes/kubelet/kubeconfig",     // Bottlerocket
	"/etc/kubernetes/kubelet-kubeconfig",     // Typhoon and other Ignition set-ups
	"/var/lib/k0s/kubelet.conf",              // k0s
	"/var/lib/kubelet/bootstrap-kubeconfig",  // while a node joins
	"/etc/kubernetes/bootstrap-kubeconfig",   //
	"/var/lib/kubelet/kubeconfig-bootstrap",  //
	"/var/lib/k0s/kubelet-bootstrap.conf",    //
	"/etc/kubernetes/kubelet/bootstrap.conf", //
}

// unitFiles are where a kubelet's flags are written down: its unit, drop-ins
// and the environment files that those read.
var unitFiles = [...]string{
	"/etc/systemd/system/kubelet.service.d/*.conf",
	"/etc/systemd/system/kubelet.service",
	"/usr/lib/systemd/system/kubelet.service.d/*.conf",
	"/usr/lib/systemd/system/kubelet.service",
	"/lib/systemd/system/kubelet.service.d/*.conf",
	"/lib/systemd/system/kubelet.service",
	"/etc/default/kubelet",
	"/etc/sysconfig/kubelet",
	"/var/lib/kubelet/kubeadm-flags.env",
}

func kubeletSource(root string) Finding {
	f := Finding{Source: SourceKubelet}
	var paths []string
	add := func(p string) {
		own := filepath.Dir(p) == "/etc/kubernetes" && slices.Contains(kubeadmFiles[:], filepath.Base(p))
		if filepath.IsAbs(p) && !own && !slices.Contains(paths, p) { // kubeadm's are read there
			paths = append(paths, p)
		}
	}
	for _, p := range kubeletFiles {
		add(p)
	}
	for _, pattern := range unitFiles {
		for _, path := range glob(root, pattern) {
			if b, err := readFile(root, path); err == nil {
				for _, p := range kubeconfigFlags(words(string(b))) {
					add(p)
				}
			}
		}
	}
	found := false
	for _, p := range paths {
		found = f.addKubeconfig(root, p) || found
	}
	if found {
		return f
	}
	// The most work last: a kubelet that runs with flags from elsewhere.
	for _, p := range runningKubelet(root) {
		add(p)
		found = f.addKubeconfig(root, p) || found
	}
	if !found {
		f.notef("no kubelet's kubeconfig in the known places, in kubelet.service, or on a running kubelet's command line")
	}
	return f
}

// kubeconfigFlags gives the paths of --kubeconfig and --bootstrap-kubeconfig.
func kubeconfigFlags(args []string) []string {
	var out []string
	for _, name := range []string{"kubeconfig", "bootstrap-kubeconfig"} {
		if v, ok := flagValue(args, name); ok {
			out = append(out, v)
		}
	}
	return out
}

// words splits a unit file or a shell file roughly: at blanks, line
// continuations, and the equals sign of an assignment in front of a flag
// (Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/…"). Comments go.
func words(s string) []string {
	var out []string
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		for _, w := range strings.Fields(strings.TrimSuffix(line, `\`)) {
			if i := strings.Index(w, "=--"); i >= 0 && !strings.HasPrefix(w, "--") {
				w = w[i+1:]
			} else if i := strings.Index(w, `="--`); i >= 0 {
				w = w[i+2:]
			}
			out = append(out, strings.Trim(w, `"'`))
		}
	}
	return out
}

// kubeletUnits are the services that run a kubelet as their main process.
var kubeletUnits = []string{"kubelet", "snap.kubelet-eks.daemon", "snap.k8s.kubelet"}

// runningKubelet gives the kubeconfigs of the kubelet that systemd or OpenRC has started. Any user may call a process
// kubelet and give it arguments, so another one does not count.
func runningKubelet(root string) []string {
	procs := hostproc.Config{Root: root}
	running, err := procs.Units(kubeletUnits...)
	if err != nil {
		return nil
	}
	for _, p := range running {
		if paths := kubeconfigFlags(procs.Args(p)); len(paths) > 0 {
			return paths
		}
	}
	return nil
}
