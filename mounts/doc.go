// Package mounts finds, judges and mounts the two file systems that firsthop
// needs: the BPF file system on which it pins its maps and links, and the
// cgroup v2 hierarchy to whose root it attaches.
//
// Both must be the host's, and the host need not be where this process runs.
// The package therefore first finds the host's mount namespace (see [FindHost]),
// looks at it from outside through a /proc/PID/root link, and enters it only to
// change something. An error names every way that was tried, and why it was not taken.
//
// Each verb comes in two halves: Find looks and changes nothing, and names in
// Actions what its counterpart Ensure would do. Ensure does that, calling
// Config.Record before each change.
//
// # Looking across mount namespaces
//
// A path below /proc/1/root is resolved in the mount namespace of process 1
// with no setns at all; it takes the right to ptrace that process
// (CAP_SYS_PTRACE, and no security module against it). Pins can be made and
// opened, and cgroups attached to, through such a path. So the Path of a result
// is always one that this very process can open.
//
// # Mounting across mount namespaces
//
// The kernel mounts only onto a mount of the caller's own mount namespace
// (check_mnt in fs/namespace.c): mount(2) on /proc/1/root/sys/fs/bpf is EINVAL,
// and so is move_mount(2) of a detached mount made by fsopen and fsmount (both
// tried on 6.18; TestMountByPathIsRefused keeps it so). The new mount
// interface is thus no way around setns. What remains where setns is refused is
// mount propagation: if the pod has the directory with Bidirectional
// propagation, a mount in our own namespace appears in the host's. It is used
// when it is there and never required, because kubelet refuses such a pod on a
// host where /sys/fs is not shared.
//
// # Threads
//
// setns and unshare change one thread, and Go moves goroutines between threads.
// Everything of that kind runs on a thread of its own that ends with the work.
package mounts
