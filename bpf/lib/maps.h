/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Every map of the project. Sizes are defaults; user space may give others
 * when it creates a map. The name carries the layout version, as maps are
 * found by their pins and two layouts may live side by side.
 */
#ifndef FIRSTHOP_LIB_MAPS_H
#define FIRSTHOP_LIB_MAPS_H

#include "types.h"

/* Whose table this is: 0 -> meta. Written and read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meta);
} fh_meta_v1 SEC(".maps");

/* What clients connect to -> service index. User space writes, all programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} fh_frontend_v1 SEC(".maps");

/* 2*index + {0 cluster, 1 local} -> the present backend set. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, word);
} fh_service_v1 SEC(".maps");

/* Backend set and slot -> address. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct backend_key);
	__type(value, struct backend);
} fh_backend_v1 SEC(".maps");

/* Who may use a service's limited frontends. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct range_key);
	__type(value, __u8);
} fh_range_v1 SEC(".maps");

/* 0 -> enum control_flags. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fh_control_v1 SEC(".maps");

/* Cookie of a network namespace -> what is known of it. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct workload);
} fh_workload_v1 SEC(".maps");

/* Client and service -> the backend that it keeps. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct affinity_key);
	__type(value, affinity);
} fh_affinity_v1 SEC(".maps");

/* Service index -> what it did. Programs write, user space reads. Not per CPU: docs/decisions/0003. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct counters);
} fh_counter_v1 SEC(".maps");

/* Low bits of a TCP socket's cookie -> what it asked for. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct peer);
} fh_peer_v1 SEC(".maps");

/* UDP socket and backend -> what it asked for. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct reverse_key);
	__type(value, struct reverse);
} fh_reverse_v1 SEC(".maps");

/* UDP socket and service -> the backend that it keeps. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct flow);
} fh_flow_v1 SEC(".maps");

#endif
