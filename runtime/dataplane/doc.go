// Package dataplane holds what the kernel has of this node's instance: the table, and the programs at the cgroup. It finds
// them, takes them over, lets the table grow, repairs what others damage, and proves that connections are translated.
package dataplane
