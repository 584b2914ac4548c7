package apiserver

import "fmt"

// Source names a place where addresses come from. The names are part of the
// output that scripts read.
type Source string

// The sources, in rank order: what an earlier one says goes first.
const (
	SourceFlags            Source = "flags"
	SourceEnvironment      Source = "environment"
	SourceKubeadmFile      Source = "kubeadm-file" // --kubeadm-config
	SourceAPI              Source = "api"
	SourceKubeconfig       Source = "kubeconfig" // the runtime's --kubeconfig
	SourceKubeadm          Source = "kubeadm"
	SourceKubelet          Source = "kubelet"
	SourceK3s              Source = "k3s"
	SourceRKE2             Source = "rke2"
	SourceMicroK8s         Source = "microk8s"
	SourceCanonical        Source = "canonical"
	SourceK0s              Source = "k0s"
	SourceServer           Source = "kube-apiserver" // of a service, or a static pod elsewhere
	SourceBalancer         Source = "balancer"
	SourcePod              Source = "pod"
	SourceClusterInfo      Source = "cluster-info"
	SourceKubeadmConfig    Source = "kubeadm-config"
	SourceKubeProxy        Source = "kube-proxy"
	SourceServicesEndpoint Source = "services-endpoint"
	SourceCache            Source = "cache"
)

// Certainty is how well an address is known, the weakest first. A weaker
// source never replaces what a stronger one has saved.
type Certainty int

const (
	// Unsure: nothing tells, as in files of versions that did not note it.
	Unsure Certainty = iota
	// Configured: read from the configuration of this node or its cluster.
	Configured
	// Said: named by the API, whose certificate this node's CA has signed.
	Said
	// Given: given by the operator.
	Given
)

var certaintyWords = [...]string{"", "configured", "said", "given"}

func (c Certainty) String() string { return certaintyWords[c] }

// MarshalText gives the words of String.
func (c Certainty) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads the words of String.
func (c *Certainty) UnmarshalText(b []byte) error {
	for i, w := range certaintyWords {
		if w == string(b) {
			*c = Certainty(i)
			return nil
		}
	}
	return fmt.Errorf("unknown certainty %q", Clip(string(b)))
}

// Certainty is that of what a source reads, unless it is a product's default.
func (s Source) Certainty() Certainty {
	switch s {
	case SourceFlags, SourceEnvironment:
		return Given
	case SourceAPI:
		return Said
	}
	return Configured
}
