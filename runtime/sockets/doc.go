// Package sockets moves connected UDP sockets whose backend is gone to one that
// their Service has, and ends those that it cannot move.
//
// A connected UDP socket keeps the backend that it was given at connect: no
// packet comes back to tell it that the backend is gone, and nothing else makes
// it ask the Service again (projectcalico/calico#4509, cilium/cilium#48096).
// With kube-proxy, whose rules see each datagram, such a socket goes on with
// another backend, and its application notices nothing.
//
// # What is compared
//
// The ways back name, for each socket that went through a Service, its cookie,
// the frontend that it asked for and the backend that it got (fh_udp_sock, and fh_udp_rev_nat where that is full;
// fh_sock_rev_nat for TCP). The [Directory] knows, from what was written to the
// table, which backends the Service of that frontend has: all that serve, also
// while they terminate. A socket on another one is stale, however its backend
// went: while no runtime ran, or from this Service alone. All are compared at
// start, after each write that took a backend away, at once after one that
// brought the first backend of a Service, and every ten seconds.
//
// # What is done
//
//   - A connected UDP socket is moved: [Reconciler] takes a copy of it out of its
//     process (pidfd_getfd, Linux 5.6) and connects the copy to the frontend, through
//     the programs, which choose a backend. Port and options stay. There is a window
//     of microseconds in which a connect of the application itself, elsewhere, is
//     overruled.
//   - One whose Service has no usable backend is moved after a second: the programs
//     lead it nowhere (bpf.Nowhere), as they do with new ones. So is one whose Service
//     is gone, at an address of the Service range. Sockets that wait there
//     are moved when there is a backend. Such a socket may have a loopback address of
//     its own: then it is dissolved first, gets another port, and a send between the
//     two calls fails with EDESTADDRREQ.
//   - One that can't be moved is ended when its backend has been gone for a second,
//     by SOCK_DESTROY: it fails its application with ECONNABORTED, and is as if it had
//     never been connected; a send then says EDESTADDRREQ, a connect reaches a backend
//     of today (udp_abort and tcp_abort, Linux 4.9 with CONFIG_INET_DIAG_DESTROY, kernel
//     commits 5d77dca82839 and c1e64e298b8c; without it such a socket stays until its
//     application connects again). So are those whose Service is gone at another
//     address, and, where that is asked for, TCP connections.
//
// A socket can't be moved below Linux 5.6, without CAP_SYS_PTRACE (and CAP_DAC_READ_SEARCH
// where its process is of another user) or the host's PID namespace, when no
// process holds it (it is on its way in a message), or when its network has no way
// to the new backend.
//
// A socket that connected to the backend's own address has no way back, and is
// left alone. An unconnected UDP socket needs none of this: its next datagram
// chooses again. Ways back from a backend that a socket has left are removed after
// ten seconds, and those of closed sockets by sweeps (sweep.go).
//
// # Whom it trusts
//
// Process and socket may be a hostile tenant's.
//
//   - A copy is used only if its cookie is that of the socket, and the kernel was asked right before whether it is
//     connected as it was. Until then a descriptor may be of anything, so nothing else is done with it.
//   - An application can hold its socket's lock as long as it likes, by a corked send of a page that is never delivered. Each
//     thread that connects or ends this socket waits then, and can't be killed. So threads of their own do that (crew.go):
//     what takes longer than 200 ms is given up and counted (Status.Hung), no network namespace may have more than two of
//     those, nor all of foreign user namespaces together more than 16, and sockets of a tenant whose others are slow
//     are skipped for a second.
//   - A tenant can have any number of processes and descriptors. They are looked through for 200 ms, then beside the
//     looks, for 10 seconds at most (finder.go).
//   - It can have any number of sockets and network namespaces, too: a list of them that takes longer than a look is used
//     by a later one (locate.go). Before Linux 6.9 SOCK_DESTROY of a socket whose lock is held stops all socket
//     diagnostics of the machine; then no socket is found, and Status.Error says so.
//
// # What it costs
//
// A look reads the ways back in batches. Only if some are stale are sockets asked
// for: those that were found before by their addresses, others by lists of all
// network namespaces and the descriptors of the processes in those that have them.
//
// Processor time on a small virtual machine (bench_test.go): 20 ms to read 60,000
// ways back (6 ms for 16,384), 7 µs to move a socket, 10 µs a descriptor to look
// through the first time; with 60,000 connected sockets, of which 600 lose their
// backend each second while as many others come and go, 5% to 6% of a processor, half
// of it to read.
//
// # What it can't reach
//
// Connections by MPTCP, whose subflows are sockets with cookies of their own.
// Sockets of network namespaces that no process is in and that nothing in
// /run/netns leads to; their ways back are removed by sweeps, too. Sockets that only
// a thread with a descriptor table of its own holds are ended, not moved. A UDP socket that was led to a
// backend, then connected to that backend's own address after the programs were
// exchanged for others, is taken for one that still is led.
package sockets
