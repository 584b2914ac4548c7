/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Says whose table this is, and of which version of "lb". No program reads it. */
#ifndef FIRSTHOP_LIB_META_MAPS_H
#define FIRSTHOP_LIB_META_MAPS_H

#include "../include/bpf.h"

struct meta {
	__u32 abi;        /* version of the map set "lb" */
	__u32 owner;      /* META_OWNER */
	__u64 generation; /* highest set id ever given out */
};
_Static_assert(sizeof(struct meta) == 16, "layout");

/* 0 -> meta. User space writes and reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meta);
} fh_meta SEC(".maps");

#endif
