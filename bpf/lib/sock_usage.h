/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_SOCK_USAGE_H
#define FIRSTHOP_LIB_SOCK_USAGE_H

#include "sock_usage_maps.h"

/* Counts a new entry of the maps at, which is one of SOCK_USAGE_*. */
static __always_inline void count_usage(__u64 at, bool overflowed)
{
	struct sock_usage *u = bpf_map_lookup_elem(&fh_sock_usage, &at);

	if (u)
		__sync_fetch_and_add(overflowed ? &u->overflowed : &u->inserted, 1);
}

#endif
