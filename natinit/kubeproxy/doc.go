// Package kubeproxy tells whether kube-proxy is on this node, whether it runs
// or only its rules are left, and whether the kernel serves a Service address
// by those rules. It only looks: it changes nothing and loads no kernel module.
//
// It asks about the network namespace of the calling thread, which has to be
// the node's: that of the host, or in a pod hostNetwork.
//
// # What counts as kube-proxy
//
// A process is known by who started it (package hostproc): a unit of kube-proxy's, or a pod in kube-system that has a
// container of that name, and by this network namespace; that of a cluster inside of containers (kind) on this machine
// does not count, and neither does a process that only bears the name. k3s and MicroK8s have kube-proxy inside one large
// process which also runs without it, so they count only together with rules.
//
// A process serves nothing by being there. Callers that decide something by kube-proxy ask [Presence.Serves]; the rest
// is for people to read.
//
// Rules are known by names that only kube-proxy gives: the nft table
// `kube-proxy`, the chains KUBE-SERVICES, KUBE-NODEPORTS and KUBE-PROXY-CANARY
// of iptables (both kinds), the device kube-ipvs0. Other KUBE- chains are not
// evidence: the kubelet makes KUBE-FIREWALL and KUBE-KUBELET-CANARY on every
// node (Kubernetes KEP 3178).
package kubeproxy
