// Package sysctl changes settings of the kernel below /proc/sys, and puts them
// back: each former value is in the instance's journal before the new one is
// written, and is restored only where the value is still one of ours.
//
//   - sysctl.go: reading, setting and restoring.
//   - conntrack.go: the settings of netfilter's connection tracking that kube-proxy sets.
//
// Those below net belong to the network namespace of the thread that reads or
// writes them (net_ctl_root in net/sysctl_net.c), whichever /proc is used.
package sysctl
