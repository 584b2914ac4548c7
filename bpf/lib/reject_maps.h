/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* How many answers to what nothing serves. Part of the map set "packet". */
#ifndef FIRSTHOP_LIB_REJECT_MAPS_H
#define FIRSTHOP_LIB_REJECT_MAPS_H

#include "address.h"

/* For how many answers there is room: a token bucket. */
struct reject_limit {
	__u64 at;     /* ns of the monotonic clock */
	__u64 tokens; /* answers, in ns: each takes REJECT_INTERVAL */
};
_Static_assert(sizeof(struct reject_limit) == 16, "layout");

/* One a CPU. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reject_limit);
} fh_reject SEC(".maps");

#endif
