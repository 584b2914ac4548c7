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
// and call [Attach] with each [Device] that gets it, [Detach] with each that loses it. [DetachGone] cleans up after devices
// that went while nobody looked, [InspectDevices] lists all, [DetachDevices] removes all (order.go, devices.go).
//
// # Two programs of ours at one hook of a device
//
// A program is never taken away before its successor is there, so that no packet passes untranslated. Where the kernel
// can't exchange it in one step, [Attach] attaches the new one and [Attached.Commit] detaches the former: when the way
// changes between tcx and clsact (another kernel, another firsthop, --forbid-feature), and when [Keeper.Restore] brings ours to
// the head, as neither a link nor a filter can be moved. After Commit there is one; a run that is killed before is completed by
// the next, of either way.
//
// Meanwhile a packet may pass both. tcx runs before the filters, so that tcx to clsact runs the former first, and the
// other changes the new one. That is harmless, as our programs only take what is addressed to a Service, or comes from a backend
// of a known flow, and leave all else with TC_ACT_UNSPEC: the first of them has changed that address, so the second leaves
// the packet alone. A verdict of the first (a drop, a redirect) ends the packet's way, and the second doesn't see it. The
// exception is a backend whose address and port are themselves a Service's: its packets are translated twice, as if it were
// asked through that Service.
//
// # The order
//
// Ours come first in both directions: a link at the head of tcx, or a filter of priority 1, the lowest number there is.
// What comes later to the same place is put before ours by the kernel; [Order] names it and [Keeper.Restore] attaches ours
// anew, a few times in an interval. A filter can't come before a program of tcx. Where the priority is taken by filters
// of another kind or protocol, the kernel has no place for ours: [ErrConflict].
//
// A clsact qdisc is made where there is none, which loses packets for some milliseconds, and deleted only by
// [DetachDevices]: see qdisc.go.
//
// The caller holds the instance's lock. Programs of others are never detached, replaced or moved.
package attach
