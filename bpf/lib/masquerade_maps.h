/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Sources for masquerade. Part of the map set "packet". */
#ifndef FIRSTHOP_LIB_MASQUERADE_MAPS_H
#define FIRSTHOP_LIB_MASQUERADE_MAPS_H

#include "address.h"

/* Which source a packet gets that leaves by a device for a destination. */
struct masquerade_key {
	__u32 prefix_len; /* bits of ifindex and dst together */
	__u32 ifindex;
	struct address dst;
};
_Static_assert(sizeof(struct masquerade_key) == 24, "layout");

/* Device and destination -> this node's address. User space writes (runtime/devices), programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct masquerade_key);
	__type(value, struct address);
} fh_masquerade SEC(".maps");

/* What may change while programs run. */
struct packet_control {
	__u16 first_port; /* of the ports for masquerade, host byte order */
	__u16 ports;      /* how many there are; 0: none */
	__u32 flags;      /* none yet, 0 */
};
_Static_assert(sizeof(struct packet_control) == 8, "layout");

/* User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet_control);
} fh_packet_ctl SEC(".maps");

#endif
