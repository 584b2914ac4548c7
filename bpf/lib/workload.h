/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What is known of the network namespace that a socket is of: a pod's, or the
 * node's.
 */
#ifndef FIRSTHOP_LIB_WORKLOAD_H
#define FIRSTHOP_LIB_WORKLOAD_H

#include "source_range.h"
#include "workload_maps.h"

static __always_inline bool opted_out(__u64 netns)
{
	__u32 zero = 0;
	__u64 *control = bpf_map_lookup_elem(&fh_control, &zero);
	struct workload *w;

	if (!control || !(*control & CONTROL_OPT_OUT))
		return false;
	w = bpf_map_lookup_elem(&fh_workload, &netns);
	return w && w->flags & WORKLOAD_OPTED_OUT;
}

/* Whether a service's source ranges allow a client. One whose address isn't known is not allowed. */
static __always_inline bool source_range_allows(__u32 index, __u64 netns, bool v4)
{
	struct workload *w = bpf_map_lookup_elem(&fh_workload, &netns);

	return w && in_source_range(index, v4 ? &w->addr4 : &w->addr6);
}

#endif
