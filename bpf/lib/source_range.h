/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_SOURCE_RANGE_H
#define FIRSTHOP_LIB_SOURCE_RANGE_H

#include "source_range_maps.h"

static __always_inline bool in_source_range(__u32 index, const struct address *addr)
{
	__u64 key[] = {160 | (__u64)index << 32, half(addr, 0), half(addr, 1)};

	return bpf_map_lookup_elem(&fh_source_range, key);
}

/* Whether an address that is no frontend is of the Service range, and nobody else's to serve. */
static __always_inline bool unallocated(const struct address *addr)
{
	return in_source_range(INDEX_SERVICE_CIDR, addr) && !in_source_range(INDEX_SERVICE_EXCEPT, addr);
}

#endif
