// Package attach attaches programs to hooks, as one transaction per target: it records each program in the journal before
// it attaches it, exchanges programs of a former version, repairs pins, inspects what is attached, and removes it.
//
// An [Attachment] is a target (a [Cgroup] or a [Device]), a hook of it, and a way. There are two ways at each target:
//
//	           with links    without
//	Cgroup     bpf_link 5.8  BPF_PROG_ATTACH
//	Device     tcx 6.6       a filter of the clsact qdisc
//
// The target says how a program is attached and detached in each way, and what links say of it (target.go, cgroup.go,
// device.go). Everything else is one ladder for all of them: link.go and program.go attach by the better way that the
// kernel has, journal.go records, detach.go removes.
//
// To attach a new tc program: have its object implement [Programs], as [Balancer] does for the connect-time programs,
// and call [Attach] with each [Device] that gets it, [Detach] with each that loses it.
//
// The caller holds the instance's lock. Programs of others are never detached, replaced or moved.
package attach
