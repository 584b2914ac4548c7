package nodeconf

import (
	"cmp"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"
)

// Invocation is how a service runs a program.
type Invocation struct {
	Service string
	Path    string // where that is written
	Args    Flags
}

// Running lists how services run a program. commands are those of the host.
func Running(commands []Command, name string) []Invocation {
	var out []Invocation
	for _, c := range commands {
		if args, ok := Program(c.Argv, name); ok && len(args) > 0 {
			out = append(out, Invocation{Service: c.Service, Path: c.Path, Args: args})
		}
	}
	return out
}

// KubeletUnits are the services that run a kubelet as their main process.
var KubeletUnits = []string{"kubelet", "snap.kubelet-eks.daemon", "snap.k8s.kubelet", "snap.kubelet.daemon"}

// kubeletFlagFiles hold flags of a kubelet whose service is not found.
var kubeletFlagFiles = [...]string{
	"/etc/default/kubelet", "/etc/sysconfig/kubelet", "/var/lib/kubelet/kubeadm-flags.env", "/etc/kubernetes/kubelet.env",
	"/etc/eks/kubelet/environment", "/etc/kubernetes/kubelet/env", "/opt/kubernetes/cfg/kubelet", "/opt/kubernetes/cfg/kubelet.conf",
}

// kubeletConfigs are where kubelets that kubeadm and others set up have their configuration.
var kubeletConfigs = [...]string{"/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet-config.yaml", "/etc/kubernetes/kubelet/config.yaml"}

// Kubelets lists how the kubelets of the node are started.
func Kubelets(host FS, commands []Command) []Invocation {
	out := Running(commands, "kubelet")
	if slices.ContainsFunc(out, func(p Invocation) bool { return len(p.Args.Kubeconfigs()) > 0 }) {
		return out
	}
	for _, path := range kubeletFlagFiles {
		if b, err := host.ReadFile(path); err == nil {
			var args Flags
			for _, value := range ParseEnv(string(b)) {
				args = append(args, SplitArgs(host, value, nil)...)
			}
			out = append(out, Invocation{Path: path, Args: args})
		}
	}
	return out
}

// Kubeconfigs gives the paths of --kubeconfig and --bootstrap-kubeconfig.
func (f Flags) Kubeconfigs() []string {
	var out []string
	for _, name := range []string{"kubeconfig", "bootstrap-kubeconfig"} {
		if v, ok := f.Last(name); ok && v != "" {
			out = append(out, v)
		}
	}
	return out
}

// StaticPodDirs are the directories of static pods of the node's kubelets: the usual one, and --pod-manifest-path, else
// staticPodPath of a kubelet's configuration and of its drop-ins (--config-dir), where the last one counts.
func StaticPodDirs(host FS, commands []Command) []string {
	out := []string{"/etc/kubernetes/manifests"} // kubeadm, kOps and most others
	add := func(dir string) {
		dir = filepath.Clean(dir)
		if filepath.IsAbs(dir) && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	var configs [][]string
	for _, file := range kubeletConfigs {
		configs = append(configs, []string{file})
	}
	for _, k := range Kubelets(host, commands) {
		if dir, ok := k.Args.Last("pod-manifest-path"); ok && dir != "" {
			add(dir)
			continue
		}
		file, _ := k.Args.Last("config")
		files := []string{file}
		if dir, ok := k.Args.Last("config-dir"); ok && dir != "" {
			files = append(files, host.Glob(filepath.Join(dir, "*.conf"))...)
		}
		configs = append(configs, files)
	}
	for _, files := range configs {
		last := ""
		for _, file := range files {
			var cfg struct {
				StaticPodPath string `json:"staticPodPath"`
			}
			if b, err := host.ReadFile(file); err == nil && yaml.Unmarshal(b, &cfg) == nil {
				last = cmp.Or(cfg.StaticPodPath, last)
			}
		}
		add(last)
	}
	return out
}
