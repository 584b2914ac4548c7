/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What is known of the network namespace that a socket is of: a pod's, or the
 * node's.
 */
#ifndef FIRSTHOP_LIB_WORKLOAD_H
#define FIRSTHOP_LIB_WORKLOAD_H

#include "maps.h"

static __always_inline bool opted_out(__u64 netns)
{
	__u32 zero = 0;
	__u64 *control = bpf_map_lookup_elem(&fh_control_v1, &zero);
	struct workload *w;

	if (!control || !(*control & CONTROL_OPT_OUT))
		return false;
	w = bpf_map_lookup_elem(&fh_workload_v1, &netns);
	return w && w->flags & WORKLOAD_OPTED_OUT;
}

/* Whether a service's source ranges let a client in. One whose address isn't known is not let in. */
static __always_inline bool let_in(__u32 index, __u64 netns, bool v4)
{
	struct workload *w = bpf_map_lookup_elem(&fh_workload_v1, &netns);
	struct range_key key = {.prefix_len = 160, .index = index};

	if (!w)
		return false;
	key.addr = v4 ? w->addr4 : w->addr6;
	return bpf_map_lookup_elem(&fh_range_v1, &key);
}

#endif
