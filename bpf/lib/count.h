/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Counts what becomes of packets that are not simply passed on, and tells who listens. */
#ifndef FIRSTHOP_LIB_COUNT_H
#define FIRSTHOP_LIB_COUNT_H

#include "events_maps.h"
#include "packet.h"

/* Counts something that happened to the packet of a flow; *to is where a new one goes, else 0. */
static __noinline int count_packet(const __u64 *key, enum packet_count what, const struct address *to, __be16 port)
{
	__u64 at = what, zero = 0, now;
	__u64 *n = bpf_map_lookup_elem(&fh_packets, &at), *until = bpf_map_lookup_elem(&fh_monitor, &zero);
	struct event event = {};

	if (n)
		__sync_fetch_and_add(n, 1);
	if (!until || !*until)
		return 0;
	now = bpf_ktime_get_ns();
	if (*until < now)
		return 0;
	event.at = now;
	__builtin_memcpy(&event.key, key, sizeof(event.key));
	if (to)
		event.to = *to;
	event.port = port;
	event.what = what;
	return bpf_ringbuf_output(&fh_events, &event, sizeof(event), 0);
}

/* Counts a packet that goes no further, and says so to the kernel. */
static __always_inline int drop(const __u64 *key, enum packet_count why)
{
	count_packet(key, why, 0, 0);
	return TC_ACT_SHOT;
}

#endif
