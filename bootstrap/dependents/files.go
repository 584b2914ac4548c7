package dependents

import (
	"maps"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/hostproc"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// kubeconfigPatterns are where distributions and installers keep kubeconfigs of the node's components.
var kubeconfigPatterns = []string{
	"/etc/kubernetes/*.conf", // kubeadm
	"/etc/kubernetes/*kubeconfig*",
	"/etc/kubernetes/*/*.conf",
	"/etc/kubernetes/*/*kubeconfig*",
	"/var/lib/kubelet/*kubeconfig*", // EKS, AKS, GKE, kOps, OpenShift
	"/var/lib/kubelet/*.conf",
	"/var/lib/kube-*/*kubeconfig*", // kube-proxy and others as units
	"/var/lib/kube-*/*.conf",
	"/var/lib/kubernetes/*kubeconfig*",
	"/var/lib/k0s/*.conf",
	"/var/lib/k0s/pki/*.conf",
	"/var/lib/rancher/*/agent/*.kubeconfig",
	"/var/lib/rancher/*/server/cred/*.kubeconfig",
	"/etc/rancher/*/*.yaml",
	"/var/snap/*/current/credentials/*.config",
	"/var/snap/*/current/etc/kubernetes/*.conf",
}

// components are the services of a node that reach the API server themselves.
var components = slices.Concat(nodeconf.KubeletUnits, slices.Sorted(maps.Keys(kubeproxy.Units)), []string{
	"rke2-agent", "rke2-server", "k0scontroller", "k0sworker", "kube-controller-manager", "kube-scheduler",
})

// textPatterns are other files that name an API server.
func textPatterns() []string {
	out := []string{
		"/etc/rancher/*/config.yaml.d/*.yaml",
		"/var/lib/rancher/*/agent/etc/*-load-balancer.json",
		"/etc/kubernetes/kubeadm*.y*ml",
		"/etc/kubernetes/*/kubeadm*.y*ml",
		"/etc/kubeadm/*.y*ml",
		"/var/lib/kubelet/kubeadm-flags.env",
		"/var/snap/*/current/args/*",
		"/var/lib/kube-proxy/*config*.y*ml",
	}
	for _, name := range components {
		for _, dir := range nodeconf.UnitDirs {
			out = append(out, dir+"/"+name+".service", dir+"/"+name+".service.d/*.conf", dir+"/"+name+".service.env")
		}
		for _, dir := range []string{"/etc/default/", "/etc/sysconfig/", "/etc/conf.d/", "/etc/init.d/"} {
			out = append(out, dir+name)
		}
		out = append(out, "/etc/rancher/"+name+"/"+name+".env")
	}
	return out
}

// flagged are the kubeconfigs that components are given: in their units and scripts, and on the command lines of their
// main processes. A process that anybody can start proves nothing.
func (s *scan) flagged() (paths []string) {
	commands := []nodeconf.Flags{}
	for _, c := range s.commands {
		commands = append(commands, c.Argv)
	}
	procs := hostproc.Config{Root: s.cfg.Root, Proc: s.cfg.Proc}
	running, err := procs.Units(components...)
	if err == nil {
		for _, p := range running {
			commands = append(commands, procs.Args(p))
		}
	}
	for _, flags := range commands {
		for _, path := range flags.All("kubeconfig", "bootstrap-kubeconfig") {
			if filepath.IsAbs(path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// staticPods are the directories of static pods: the kubelet's, and those of RKE2.
func (s *scan) staticPods() []string {
	return append(nodeconf.StaticPodDirs(s.fs, s.commands), s.fs.Glob("/var/lib/rancher/*/agent/pod-manifests")...)
}

// kubeProxyConfigs are the kubeconfigs in the ConfigMap of kube-proxy's pods.
func (s *scan) kubeProxyConfigs() (paths []string) {
	for _, container := range kubeproxy.KubeletHas(s.cfg.Root) {
		pod := path.Dir(path.Dir(container))
		paths = append(paths, s.fs.Glob(pod+"/volumes/kubernetes.io~configmap/kube-proxy/*.conf")...)
	}
	return paths
}

// Kinds of configuration.
const (
	kubelet      = "kubelet"
	kubeProxyPod = "kube-proxy's ConfigMap"
	staticPod    = "static pod"
)

func (s *scan) dependent(file, server string, service netip.AddrPort) Dependent {
	d := Dependent{Path: file, Server: server, Service: service}
	if d.Kind, d.restart = kindOf(file); slices.Contains(s.pods, path.Dir(file)) {
		d.Kind, d.restart = staticPod, "" // the kubelet sees the change
	}
	return d
}

// kindOf says whose configuration a file is, and how that is made to read it again.
func kindOf(file string) (kind, restart string) {
	base, dir := path.Base(file), path.Dir(file)
	unit := ""
	for _, name := range components {
		if strings.HasPrefix(base, name+".") && strings.Contains(dir, "systemd") || strings.HasSuffix(dir, "/"+name+".service.d") ||
			base == name && (dir == "/etc/default" || dir == "/etc/sysconfig" || dir == "/etc/conf.d" || dir == "/etc/init.d") {
			unit = name
		}
	}
	reload := ""
	if strings.Contains(dir, "/systemd/") {
		reload = "systemctl daemon-reload && "
	}
	switch {
	case strings.HasPrefix(file, "/var/lib/kubelet/pods/"):
		return kubeProxyPod, "kubectl -n kube-system rollout restart daemonset kube-proxy"
	case unit != "":
		return unit, reload + "systemctl restart " + unit
	case strings.Contains(file, "/rancher/k3s"):
		return "k3s", "systemctl restart k3s-agent || systemctl restart k3s"
	case strings.Contains(file, "/rancher/rke2"):
		return "rke2", "systemctl restart rke2-agent || systemctl restart rke2-server"
	case strings.HasPrefix(file, "/var/lib/k0s"):
		return "k0s", "k0s stop && k0s start"
	case strings.HasPrefix(file, "/var/snap/microk8s"):
		return "microk8s", "snap restart microk8s"
	case strings.HasPrefix(base, "kubeadm") && base != "kubeadm-flags.env":
		return "kubeadm", "kubectl -n kube-system edit configmap kubeadm-config # controlPlaneEndpoint, for nodes that join"
	case strings.HasPrefix(base, "controller-manager"), strings.HasPrefix(base, "kube-controller-manager"):
		return "kube-controller-manager", "crictl stop $(crictl ps -q --name kube-controller-manager)"
	case strings.HasPrefix(base, "scheduler"), strings.HasPrefix(base, "kube-scheduler"):
		return "kube-scheduler", "crictl stop $(crictl ps -q --name kube-scheduler)"
	case strings.Contains(base, "admin"):
		return "kubectl and kubeadm", ""
	case strings.Contains(file, "kube-proxy"), strings.Contains(file, "kubeproxy"):
		return "kube-proxy", "systemctl restart kube-proxy"
	case strings.Contains(base, "bootstrap"):
		return kubelet, "systemctl restart kubelet"
	case strings.Contains(file, "kubelet"):
		return kubelet, "systemctl restart kubelet"
	}
	return "kubeconfig", ""
}
