/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_COUNT_H
#define FIRSTHOP_LIB_COUNT_H

#include "conntrack_maps.h"

static __always_inline void count_packet(enum packet_count what)
{
	__u64 at = what;
	__u64 *n = bpf_map_lookup_elem(&fh_packets, &at);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Counts a packet that goes no further, and says so to the kernel. */
static __always_inline int drop(enum packet_count why)
{
	count_packet(why);
	return TC_ACT_SHOT;
}

#endif
