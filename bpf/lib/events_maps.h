/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What `firsthop monitor` is told. Part of the map set "packet". */
#ifndef FIRSTHOP_LIB_EVENTS_MAPS_H
#define FIRSTHOP_LIB_EVENTS_MAPS_H

#include "conntrack_maps.h"

/* Something of enum packet_count that happened to a packet. */
struct event {
	__u64 at;            /* ns of the monotonic clock */
	struct flow_key key; /* of the packet, as it came to the hook */
	struct address to;   /* of a new flow: its backend; else zero */
	__be16 port;         /* likewise */
	__u16 what;          /* enum packet_count */
	__u32 pad;
};
_Static_assert(sizeof(struct event) == 72, "layout");

/* The last ones that were not read yet. Programs write (Linux 5.8; nothing below), user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18); /* bytes */
} fh_events SEC(".maps");

/* 0 -> until when somebody listens, ns of the monotonic clock. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fh_monitor SEC(".maps");

#endif
