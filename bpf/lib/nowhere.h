/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Where a UDP socket is led that asks for what nothing serves: to the discard
 * port (RFC 863) of a loopback address, so that nothing leaves the node. Where
 * nobody listens there, the host answers as kube-proxy's reject does, by ICMP
 * port unreachable: a connected socket hears ECONNREFUSED at a later call, and
 * an unconnected one nothing. Not port 0: the kernel takes a socket that is
 * connected to it for one that is not (inet_getname).
 */
#ifndef FIRSTHOP_LIB_NOWHERE_H
#define FIRSTHOP_LIB_NOWHERE_H

/* In host byte order; for IPv6 it is ::1. Twins of bpf.Nowhere. */
#define NOWHERE_IP4 0x7f000009u
#define NOWHERE_PORT 9

#endif
