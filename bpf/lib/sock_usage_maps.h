/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What programs have put into the maps of UDP sockets. Part of the map set "sock". */
#ifndef FIRSTHOP_LIB_SOCK_USAGE_MAPS_H
#define FIRSTHOP_LIB_SOCK_USAGE_MAPS_H

#include "../include/bpf.h"

/* All CPUs add to one; user space sees by it when there may be something to remove. */
struct sock_usage {
	__u64 inserted;   /* new entries of the hash */
	__u64 overflowed; /* new entries that it had no room for, and that went to the LRU hash beside it */
};
_Static_assert(sizeof(struct sock_usage) == 16, "layout");

#define SOCK_USAGE_REV_NAT 0  /* fh_udp_sock, fh_udp_rev_nat */
#define SOCK_USAGE_AFFINITY 1 /* fh_udp_affin, fh_sock_affin */

/* SOCK_USAGE_* -> how often. Programs write, user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct sock_usage);
} fh_sock_usage SEC(".maps");

#endif
