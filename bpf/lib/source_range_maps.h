/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_SOURCE_RANGE_MAPS_H
#define FIRSTHOP_LIB_SOURCE_RANGE_MAPS_H

#include "address.h"

/*
 * The clients that frontends with FRONTEND_SOURCE_RANGE are for, and, at
 * indexes that no service has, the addresses that Services have. An LPM trie;
 * the value says nothing.
 */
struct source_range_key {
	__u32 prefix_len; /* bits of index and addr together */
	__u32 index;      /* of the service, or one of the two below */
	struct address addr;
};
_Static_assert(sizeof(struct source_range_key) == 24, "layout");

#define INDEX_SERVICE_CIDR 0             /* addresses of Services: who connects to one that is no frontend is refused */
#define INDEX_SERVICE_EXCEPT 0xffffffffu /* of them, those that are not ours to refuse */

/* Who may use a service's frontends. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_range_key);
	__type(value, __u8);
} fh_source_range SEC(".maps");

#endif
