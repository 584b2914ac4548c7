/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_SOCK_AFFINITY_H
#define FIRSTHOP_LIB_SOCK_AFFINITY_H

#include "lb.h"
#include "sock_affinity_maps.h"

/* A backend for a datagram: a sticky frontend's is the one that this socket used before, while it is one. */
static __always_inline struct backend *datagram_backend(const struct lookup *l, const struct frontend *fe)
{
	struct sock_affinity_key key = {
		.cookie = l->cookie,
		.index = fe->index,
		.local_policy = !!(fe->flags & FRONTEND_LOCAL_POLICY),
	};
	bool sticky = fe->flags & FRONTEND_STICKY;
	struct sock_affinity *old = sticky ? bpf_map_lookup_elem(&fh_sock_affin, &key) : 0;
	struct sock_affinity new = {};
	struct backend *be;

	if (old) {
		be = member_backend(fe, old->id);
		if (be)
			return be;
	}
	be = choose_backend(fe, l->netns);
	if (be && sticky) {
		new.id = be->id;
		bpf_map_update_elem(&fh_sock_affin, &key, &new, BPF_ANY);
	}
	return be;
}

#endif
