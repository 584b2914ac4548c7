// Package kube is the module of what tests firsthop against Kubernetes itself. It is a module of its own so that the
// product's has none of Kubernetes' dependencies.
//
//	binaries  builds kube-apiserver and kube-proxy from k8s.io/kubernetes and fetches etcd, once, below .cache/kube
//	cluster   a cluster of real API servers, and nodes that are namespaces: what `firsthop run` and kube-proxy run in
//	nodes     a cluster made by kubeadm, on nodes with systemd, containerd and kubelet
//	oracle    kube-proxy's own packages and ours on the same random objects: they must choose the same
//	scenes    what users do with firsthop on such a cluster, under load
//
// Tests of the running program against the real API server, chaos and the benchmarks beside kube-proxy belong in
// packages of their own beside these, on top of package cluster.
package kube
