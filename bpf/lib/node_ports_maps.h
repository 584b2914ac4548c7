/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Part of the map set "lb". */
#ifndef FIRSTHOP_LIB_NODE_PORTS_MAPS_H
#define FIRSTHOP_LIB_NODE_PORTS_MAPS_H

#include "../include/bpf.h"

/*
 * Which ports may be node ports at other nodes: bit n is for the ports from
 * 1024 n to 1024 n + 1023. A connection to a port of no such bit, as nearly all that
 * are nobody's frontend, need not be looked up among the addresses of nodes. User space sets a
 * bit before it writes the first node port there, and leaves it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fh_node_ports SEC(".maps");

#endif
