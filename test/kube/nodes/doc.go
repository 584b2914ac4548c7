// Package nodes makes a Kubernetes cluster as its users do: by kubeadm, on nodes with systemd, containerd and a kubelet.
// A node is a [lab.Lab] whose first process is systemd, in namespaces of its own, with a disk that is a directory: no
// virtual machine and no container daemon.
//
//	c := nodes.New(t)
//	n := c.Node("n1")
//	n.Sh("firsthop install")
//	n.Kubeadm("init", "--skip-phases=addon/kube-proxy")
//	load := c.Load("connect=10.96.0.1:443", "hold=10.96.0.1:443", "api=https://10.96.0.1:443")
//	n.Cut()
//	n.Boot()
//
// Programs, the nodes' root file system (packages of Debian, unpacked and never installed) and images are made once, below
// .cache/kube.
//
// # What is real
//
// kubeadm, kubelet, containerd, runc, systemd and all units are what a node has. The kernel is the machine's: a node has
// a part of each cgroup hierarchy (version 1, 2 or both, as the machine) as its root, and of /proc/sys only what is its
// network namespace's. kubelet's own sysctls are files that lie over the machine's. There is no udev.
//
// A cut of power kills every process of the node at once. /run, the bpffs, the network's devices and rules and the
// contents of the cgroups are gone with it; the disk stays. What was written to it stays as well, as the machine has not
// lost its own page cache: test/vm/boot cuts the power of machines.
//
// # Clean-up
//
// All is removed with the test, and after a kill -9 of it, by [lab.Reap].
package nodes
