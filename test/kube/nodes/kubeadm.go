package nodes

import (
	"fmt"
	"slices"
	"strings"
)

// token joins nodes, and lives as long as the test.
const token = "abcdef.0123456789abcdef"

// Ignored are kubeadm's checks that a node which is no machine can't pass: the kernel's configuration, two processors,
// and a sysctl of bridges that only the machine has.
const Ignored = "SystemVerification,NumCPU,Mem,FileContent--proc-sys-net-bridge-bridge-nf-call-iptables"

// InitConfig is what Kubeadm("init") is given. Failures come as late as on a node, but no test needs a clean node to be
// garbage-collected.
const InitConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: IP, bindPort: 6443}
bootstrapTokens:
- {token: TOKEN, ttl: 24h0m0s, usages: [signing, authentication], groups: ["system:bootstrappers:kubeadm:default-node-token"]}
certificateKey: CERTKEY
nodeRegistration: {name: NAME, criSocket: "unix:///run/containerd/containerd.sock", imagePullPolicy: IfNotPresent, taints: [], kubeletExtraArgs: [{name: node-ip, value: IP}]}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: VERSION
controlPlaneEndpoint: ENDPOINT
networking: {serviceSubnet: SERVICES, podSubnet: PODS, dnsDomain: cluster.local}
---
` + KubeletConfig

// KubeletConfig is what a kubelet needs on a node that is no machine: control groups of version 1, and the disk of a machine that
// has other work.
const KubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
`

// KubeProxyConfig is InitConfig with a kube-proxy in a mode, that does not set what belongs to the whole machine.
func KubeProxyConfig(mode string) string {
	return InitConfig + `---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ` + mode + `
conntrack: {maxPerCore: 0, min: 0}
`
}

// joinConfig is what Kubeadm("join") is given, and what makes a node another control plane.
const (
	joinConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery: {bootstrapToken: {token: TOKEN, apiServerEndpoint: "ENDPOINT", unsafeSkipCAVerification: true}}
nodeRegistration: {name: NAME, criSocket: "unix:///run/containerd/containerd.sock", imagePullPolicy: IfNotPresent, taints: [], kubeletExtraArgs: [{name: node-ip, value: IP}]}
`
	controlPlane = "controlPlane: {localAPIEndpoint: {advertiseAddress: IP, bindPort: 6443}, certificateKey: CERTKEY}\n"
	// certificateKey decrypts the certificates that init --upload-certs leaves in the cluster.
	certificateKey = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// ControlPlane is the flag of Kubeadm("join") that makes a node another control plane.
const ControlPlane = "--control-plane"

// Kubeadm runs a command of kubeadm on the node and returns what it prints. "init" and "join", without a phase, get a
// configuration for the cluster, and the images that they would pull.
func (n *Node) Kubeadm(command string, flags ...string) string {
	n.c.t.Helper()
	if (command == "init" || command == "join") && !slices.Contains(flags, "phase") {
		n.Import("pause", "coredns", "firsthop", "load")
		config := n.c.InitConfig
		isControlPlane := command == "init"
		if command == "join" {
			config = joinConfig
			if i := slices.Index(flags, ControlPlane); i >= 0 { // the configuration says so
				flags = slices.Delete(slices.Clone(flags), i, i+1)
				config += controlPlane
				isControlPlane = true
			}
		}
		if isControlPlane {
			n.Import(append([]string{"etcd"}, controlPlanePrograms...)...)
		}
		n.PutKubeadmConfig(config)
		flags = append([]string{"--config=" + KubeadmConfig, "--ignore-preflight-errors=" + Ignored}, flags...)
	}
	return n.Sh("kubeadm " + command + " " + strings.Join(flags, " "))
}

// KubeadmConfig is where a node has the configuration of init or join.
const KubeadmConfig = "/etc/kubeadm.yaml"

// PutKubeadmConfig writes a node's configuration for kubeadm, with the cluster's values in the place of words in capitals.
func (n *Node) PutKubeadmConfig(text string) {
	n.c.t.Helper()
	n.Put(KubeadmConfig, strings.NewReplacer(
		"TOKEN", token, "CERTKEY", certificateKey, "ENDPOINT", n.c.Endpoint, "VERSION", n.c.Version,
		"SERVICES", ServiceCIDR, "PODS", PodCIDR, "NAME", n.Name, "IP}", n.IP+"}", "IP,", n.IP+",").Replace(text))
}

// Import gives the node images, by the names of their archives. A missing one would cost kubeadm a minute of tries to pull
// it.
func (n *Node) Import(images ...string) {
	n.c.t.Helper()
	for _, name := range images {
		n.ImportFile("/opt/images/" + name + ".tar")
	}
}

// ImportFile gives the node the images of an archive in a directory of Cluster.Binds, by its path on the node.
func (n *Node) ImportFile(path string) {
	n.c.t.Helper()
	n.Sh("ctr -n k8s.io images import " + path + " >/dev/null")
}

// FormerVersion is what a cluster says that it is of before an upgrade. Its programs are those of the new version.
const FormerVersion = "v1.36.2"

// ImportFormer gives a control plane the images of the former version.
func (n *Node) ImportFormer() {
	n.c.t.Helper()
	for _, name := range controlPlanePrograms {
		n.Import(name)
		n.Sh(fmt.Sprintf("ctr -n k8s.io images tag registry.k8s.io/%[1]s:%[2]s registry.k8s.io/%[1]s:%[3]s", name, n.c.files.version, FormerVersion))
	}
}
