package nodes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/firsthop/firsthop/test/vm/debian"
)

// suites are of the release that the nodes' system is. Its containerd is of version 1, which kubelet 1.37 drops.
var suites = []string{"trixie", "trixie-security"}

// packages are what a node has beside Kubernetes' programs.
var packages = []string{
	"base-files", "base-passwd", "bash", "conntrack", "containerd", "containernetworking-plugins", "coreutils", "dash", "dbus",
	"ethtool", "findutils", "grep", "hostname", "iproute2", "iptables", "kmod", "libc-bin", "login", "mount", "netbase", "nftables", "procps",
	"runc", "sed", "socat", "systemd", "systemd-sysv", "util-linux",
}

// unused are dependencies of the packages' scripts, which are not run.
var unused = []string{"adduser", "debconf", "dpkg", "passwd", "perl", "perl-base"}

// rootFiles are what makes a system of the packages a node.
var rootFiles = map[string]string{
	"etc/containerd/config.toml": `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.2"
  restrict_oom_score_adj = true # the machine may not have CAP_SYS_RESOURCE
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`,
	"etc/systemd/system/kubelet.service": `[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
`,
	// As the packages of Kubernetes have it.
	"etc/systemd/system/kubelet.service.d/10-kubeadm.conf": `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`,
	// A package of Debian that is unpacked alone has none.
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

// iptables are the commands that one program of nftables stands in for.
var iptables = []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"}

// rootLinks are symbolic links: programs, services that start at boot, and units that are of no use on a node that is not a
// machine.
var rootLinks = func() map[string]string {
	links := map[string]string{
		"usr/local/bin/firsthop":                                        "/opt/under-test/firsthop",
		"etc/systemd/system/default.target":                             "/usr/lib/systemd/system/multi-user.target",
		"etc/systemd/system/multi-user.target.wants/containerd.service": "/usr/lib/systemd/system/containerd.service",
		"etc/systemd/system/multi-user.target.wants/kubelet.service":    "/etc/systemd/system/kubelet.service",
	}
	for _, name := range []string{"kubeadm", "kubectl", "kubelet", "load"} {
		links["usr/bin/"+name] = "/opt/kube/" + name
	}
	for _, name := range iptables {
		links["usr/sbin/"+name] = "xtables-nft-multi" // a script of the package asks which: nft or legacy
	}
	for _, unit := range []string{
		"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
		"systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
		"proc-sys-fs-binfmt_misc.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
		"sys-kernel-config.mount", "dev-hugepages.mount", "getty.target", "console-getty.service", "timers.target",
		"systemd-firstboot.service", "systemd-resolved.service", "systemd-timesyncd.service", "systemd-networkd.service", "nftables.service",
	} {
		links["etc/systemd/system/"+unit] = "/dev/null"
	}
	return links
}()

// ensureRoot returns the root file system that nodes have in common, below a cache.
func ensureRoot(ctx context.Context, cache string, log io.Writer) (string, error) {
	mirror, err := debian.MirrorOf("")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Append(nil, packages, rootFiles, rootLinks)) // maps are printed in order
	archive := debian.Archive{Dir: cache, Arch: runtime.GOARCH, Mirror: mirror, Log: log}
	tree, err := archive.Fetch(ctx, debian.Request{
		Suites: suites, Packages: packages, Key: "containerd", Variant: hex.EncodeToString(sum[:4]),
		Keep: func(name string) bool { return !slices.Contains(unused, name) },
	})
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "nodes", filepath.Base(tree.Dir))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(root), ".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	made := filepath.Join(tmp, "root")
	if out, err := exec.CommandContext(ctx, "cp", "--archive", tree.Dir, made).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy %s: %w: %s", tree.Dir, err, out)
	}
	if err := debian.Configure(ctx, made); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(rootFiles)) {
		if err := writeFile(filepath.Join(made, name), rootFiles[name]); err != nil {
			return "", err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rootLinks)) {
		path := filepath.Join(made, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
		if err := os.Symlink(rootLinks[name], path); err != nil {
			return "", err
		}
	}
	return root, os.Rename(made, root)
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// copyDeploy copies the repository's manifests, and the chart of which they are made.
func (f files) copyDeploy(to string) error {
	for _, dir := range []string{"chart", "manifests", "runtime"} {
		if err := os.CopyFS(filepath.Join(to, dir), os.DirFS(filepath.Join(f.repository, "deploy", dir))); err != nil {
			return err
		}
	}
	return nil
}
