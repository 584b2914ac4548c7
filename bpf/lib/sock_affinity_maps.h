/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The backends that UDP sockets keep. Part of the map set "sock". */
#ifndef FIRSTHOP_LIB_SOCK_AFFINITY_MAPS_H
#define FIRSTHOP_LIB_SOCK_AFFINITY_MAPS_H

#include "../include/bpf.h"

/*
 * The backend that an unconnected UDP socket keeps for a service: a QUIC
 * connection must not change its server with each datagram.
 */
struct sock_affinity_key {
	__u64 cookie;
	__u32 index;        /* of the service */
	__u32 local_policy; /* 1: chosen by the service's state for the Local policy */
};
_Static_assert(sizeof(struct sock_affinity_key) == 16, "layout");

struct sock_affinity {
	__u32 id; /* backend.id */
	__u32 pad;
};
_Static_assert(sizeof(struct sock_affinity) == 8, "layout");

/*
 * UDP socket and service -> the backend that it keeps. Programs write and read;
 * user space removes what sockets left that were closed. As fh_udp_sock, it
 * forgets nothing: where it is full, new ones go to the next one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct sock_affinity_key);
	__type(value, struct sock_affinity);
} fh_udp_affin SEC(".maps");

/* The same, of what found no room there, and of programs of a former version, which have no other. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct sock_affinity_key);
	__type(value, struct sock_affinity);
} fh_sock_affin SEC(".maps");

#endif
