// Package bench measures firsthop beside the real kube-proxy, in its modes iptables and nftables, in one run: with the
// same API server, the same Services and by turns. The table and the plots in docs/benchmarks.md are its output:
//
//	make bench-kube                                # a short run, to see how it goes; changes no file
//	make bench-kube KUBE_SIZES=10,1000,10000,30000 # the whole; writes docs/benchmarks.md
//
// Each of the three has a node of its own, which is a network namespace (package cluster): with a pod that connects,
// from two addresses by turns, and a pod that accepts. The latter has the same four addresses on every node, so the
// endpoints of every Service are on the client's own node, whichever that is: the way is short, and what a proxy adds to
// it weighs most. All nodes share the machine's processors; while one is measured, nothing happens on the others, and
// where changes come that all would react to, the others' proxies are stopped (SIGSTOP).
//
// # What direct means
//
// On firsthop's node a client that is not in the attached cgroup meets no program of ours, and the node has no rules:
// this is what the kernel itself does. It is "bare". Each proxy's connects through Services are compared with it; and
// with "direct" ones, to the backend itself by a client that the proxy does serve, which costs firsthop two look-ups that
// find nothing and kube-proxy a way through its rules.
package bench
