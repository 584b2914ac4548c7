package sources

import (
	"cmp"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"

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

// strayKubeletFiles hold flags of a kubelet whose service is not found.
var strayKubeletFiles = [...]string{
	"/etc/default/kubelet", "/etc/sysconfig/kubelet", "/var/lib/kubelet/kubeadm-flags.env", "/etc/kubernetes/kubelet.env",
	"/etc/eks/kubelet/environment", "/etc/kubernetes/kubelet/env", "/opt/kubernetes/cfg/kubelet", "/opt/kubernetes/cfg/kubelet.conf",
}

// kubeletArgs are the argument lists of the node's kubelets.
func (h *host) kubeletArgs() []program {
	out := h.running("kubelet")
	if slices.ContainsFunc(out, func(p program) bool { return len(kubeconfigFlags(p.args)) > 0 }) {
		return out
	}
	for _, path := range strayKubeletFiles {
		if b, err := h.ReadFile(path); err == nil {
			var args nodeconf.Flags
			for _, value := range nodeconf.ParseEnv(string(b)) {
				args = append(args, nodeconf.SplitArgs(h, value, nil)...)
			}
			out = append(out, program{where: path, args: args})
		}
	}
	return out
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
	for _, k := range h.kubeletArgs() {
		for _, p := range kubeconfigFlags(k.args) {
			add(p)
		}
	}
	for _, p := range kubeletFiles {
		add(p)
	}
	found := false
	for _, p := range paths {
		found = f.addKubeconfig(h.root, p) || found
	}
	if found {
		return f
	}
	// The most work last: a kubelet that runs with flags from elsewhere.
	for _, p := range h.runningKubelet() {
		add(p)
		found = f.addKubeconfig(h.root, p) || found
	}
	if !found {
		f.Notef("no kubelet's kubeconfig in the known places, in a service that runs kubelet, or on a running kubelet's command line")
	}
	return f
}

// kubeconfigFlags gives the paths of --kubeconfig and --bootstrap-kubeconfig.
func kubeconfigFlags(args []string) []string {
	var out []string
	for _, name := range []string{"kubeconfig", "bootstrap-kubeconfig"} {
		if v, ok := nodeconf.Flags(args).Last(name); ok && v != "" {
			out = append(out, v)
		}
	}
	return out
}

// staticPodDirs are the directories of static pods of the node's kubelets, but
// for manifestDir: --pod-manifest-path, else staticPodPath of the kubelet's
// configuration and of its drop-ins (--config-dir), where the last one counts.
func (h *host) staticPodDirs() []string {
	var out []string
	add := func(dir string) {
		dir = filepath.Clean(dir)
		if filepath.IsAbs(dir) && dir != manifestDir && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	configs := [][2]string{{"/var/lib/kubelet/config.yaml", ""}}
	for _, k := range h.kubeletArgs() {
		if dir, ok := k.args.Last("pod-manifest-path"); ok && dir != "" {
			add(dir)
			continue
		}
		file, _ := k.args.Last("config")
		dropIns, _ := k.args.Last("config-dir")
		configs = append(configs, [2]string{file, dropIns})
	}
	for _, c := range configs {
		files := []string{c[0]}
		if c[1] != "" {
			files = append(files, h.Glob(filepath.Join(c[1], "*.conf"))...)
		}
		last := ""
		for _, p := range files {
			if p == "" {
				continue
			}
			var kc struct {
				StaticPodPath string `json:"staticPodPath"`
			}
			if b, err := h.ReadFile(p); err == nil && yaml.Unmarshal(b, &kc) == nil {
				last = cmp.Or(kc.StaticPodPath, last)
			}
		}
		if last != "" {
			add(last)
		}
	}
	return out
}

// kubeletUnits are the services that run a kubelet as their main process.
var kubeletUnits = []string{"kubelet", "snap.kubelet-eks.daemon", "snap.k8s.kubelet", "snap.kubelet.daemon"}

// runningKubelet gives the kubeconfigs of the kubelet that systemd or OpenRC has started. Any user may call a process
// kubelet and give it arguments, so another one does not count.
func (h *host) runningKubelet() []string {
	units := slices.Clone(kubeletUnits)
	for _, k := range h.running("kubelet") {
		units = append(units, k.service)
	}
	procs := hostproc.Config{Root: h.root}
	running, err := procs.Units(units...)
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
