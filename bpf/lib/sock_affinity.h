/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_SOCK_AFFINITY_H
#define FIRSTHOP_LIB_SOCK_AFFINITY_H

#include "lb.h"
#include "outgrown_maps.h"
#include "sock_affinity_maps.h"
#include "sock_usage.h"

static __always_inline struct sock_affinity *sock_affinity_lookup(const __u64 *key)
{
	struct sock_affinity *a = bpf_map_lookup_elem(&fh_udp_affin, key);

	if (!a && growing())
		a = bpf_map_lookup_elem(&outgrown_affin, key);
	return a ? a : bpf_map_lookup_elem(&fh_sock_affin, key);
}

static __always_inline void sock_affinity_update(const __u64 *key, __u32 id)
{
	struct sock_affinity *old = bpf_map_lookup_elem(&fh_udp_affin, key);
	__u64 new = id;

	if (!bpf_map_update_elem(&fh_udp_affin, key, &new, BPF_ANY)) {
		if (!old)
			count_usage(SOCK_USAGE_AFFINITY, false);
		return;
	}
	if (old) /* no memory: what it says is not true any more, and is found first */
		bpf_map_delete_elem(&fh_udp_affin, key);
	old = bpf_map_lookup_elem(&fh_sock_affin, key);
	if (!old)
		count_usage(SOCK_USAGE_AFFINITY, true);
	bpf_map_update_elem(&fh_sock_affin, key, &new, BPF_ANY);
}

/* A backend for a datagram: a sticky frontend's is the one that this socket used before, while it is one. */
static __always_inline void datagram_backend(const struct lookup *l, const struct frontend *fe, struct backend *to)
{
	__u64 key[2] = {l->cookie, fe->index | (__u64) !!(fe->flags & FRONTEND_LOCAL_POLICY) << 32};
	struct sock_affinity *old = 0;

	if (fe->flags & FRONTEND_STICKY)
		old = sock_affinity_lookup(key);
	if (old)
		member_backend(fe, old->id, to);
	if (to->id)
		return;
	choose_backend(fe, l->netns, to);
	if (to->id && fe->flags & FRONTEND_STICKY)
		sock_affinity_update(key, to->id);
}

#endif
