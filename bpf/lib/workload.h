/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What is known of the network namespace that a socket is of: a pod's, or the
 * node's.
 */
#ifndef FIRSTHOP_LIB_WORKLOAD_H
#define FIRSTHOP_LIB_WORKLOAD_H

#include "lookup.h"
#include "source_range.h"
#include "workload_maps.h"

static __always_inline bool opted_out(__u64 netns)
{
	__u64 zero = 0;
	__u64 *control = bpf_map_lookup_elem(&fh_control, &zero);
	struct workload *w;

	if (!control || !(*control & CONTROL_OPT_OUT))
		return false;
	w = bpf_map_lookup_elem(&fh_workload, &netns);
	return w && w->flags & WORKLOAD_OPTED_OUT;
}

/*
 * Whether a service's source ranges allow a client: by the address that its
 * socket is bound to, or by that of its network namespace. One whose address isn't known is not allowed.
 * Another loopback address is no client's: connections that have one stay on the node.
 */
static __always_inline bool source_range_allows(__u32 index, const struct lookup *l)
{
	struct address client = l->src;
	struct workload *w;

	if (is_zero(&client) || is_loopback(&client) || is_v4(&client) != is_v4(&l->addr)) {
		w = bpf_map_lookup_elem(&fh_workload, &l->netns);
		if (!w)
			return false;
		client = is_v4(&l->addr) ? w->addr4 : w->addr6;
	}
	return in_source_range(index, &client);
}

/* Whether a socket with a loopback address of its own reaches an address; true where that isn't known. */
static __always_inline bool reached_from_loopback(const struct lookup *l, const struct address *addr)
{
	struct workload *w;

	if (is_loopback(addr))
		return true;
	w = bpf_map_lookup_elem(&fh_workload, &l->netns);
	return !w || same_address(addr, is_v4(addr) ? &w->addr4 : &w->addr6);
}

#endif
