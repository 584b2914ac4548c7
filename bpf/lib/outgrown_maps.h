/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The maps of sockets that others take the place of. While maps grow, programs
 * of two generations are attached: those before write to the smaller maps, and
 * these to the larger ones, and look for what is not there in the smaller ones.
 * So user space can exchange programs one by one, and then copy what programs
 * don't write any more. Then come programs with settings.outgrown_mask 0, which
 * never look here; for them these are the maps in use (natinit/grow.go).
 */
#ifndef FIRSTHOP_LIB_OUTGROWN_MAPS_H
#define FIRSTHOP_LIB_OUTGROWN_MAPS_H

#include "config.h"
#include "sock_affinity_maps.h"
#include "sock_rev_nat_maps.h"

#define growing() (settings.outgrown_mask != 0)

/* Of fh_sock_rev_nat. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct sock_rev_nat);
} outgrown_tcp SEC(".maps");

/* Of fh_udp_sock. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct udp_rev_nat_key);
	__type(value, struct udp_rev_nat);
} outgrown_udp SEC(".maps");

/* Of fh_udp_affin. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct sock_affinity_key);
	__type(value, struct sock_affinity);
} outgrown_affin SEC(".maps");

#endif
