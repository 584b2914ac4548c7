// Package bpf holds the BPF programs, their compiled object, the byte layout
// of the maps that they share with user space, the places where both are
// pinned, and how they are created and loaded.
//
// It knows nothing about Services, cgroups or API servers: package bpf/nat
// keeps the NAT table in order, package natinit attaches the programs.
package bpf
