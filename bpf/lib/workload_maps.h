/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The map set "workload": what is known of network namespaces. */
#ifndef FIRSTHOP_LIB_WORKLOAD_MAPS_H
#define FIRSTHOP_LIB_WORKLOAD_MAPS_H

#include "address.h"

enum workload_flags {
	WORKLOAD_OPTED_OUT = 1 << 0, /* its connections are left alone */
};

/* What is known of a network namespace, by its cookie. */
struct workload {
	__u32 flags; /* enum workload_flags */
	__u32 pad;
	struct address addr4; /* for source ranges; zero: none is known */
	struct address addr6;
};
_Static_assert(sizeof(struct workload) == 40, "layout");

/* Cookie of a network namespace -> what is known of it. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct workload);
} fh_workload SEC(".maps");

/* What must be looked for. */
enum control_flags {
	CONTROL_OPT_OUT = 1 << 0, /* there are workloads that opted out */
};

/* 0 -> enum control_flags. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fh_control SEC(".maps");

#endif
