/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From frontend to backend. Nothing here knows about sockets or packets.
 */
#ifndef FIRSTHOP_LIB_NAT_H
#define FIRSTHOP_LIB_NAT_H

#include "maps.h"

static __always_inline struct counters *counters_of(__u32 index)
{
	return bpf_map_lookup_elem(&fh_counter_v1, &index);
}

static __always_inline void count_translated(__u32 index)
{
	struct counters *c = counters_of(index);

	if (c)
		__sync_fetch_and_add(&c->translated, 1);
}

static __always_inline void count_refused(__u32 index)
{
	struct counters *c = counters_of(index);

	if (c)
		__sync_fetch_and_add(&c->refused, 1);
}

/*
 * The frontend behind key; NULL: not ours, leave it alone. A hit is one
 * lookup. A miss is two: the address may be a VIP that doesn't serve this
 * port. On a miss port and proto of key are lost.
 */
static __always_inline struct frontend *find_frontend(struct frontend_key *key)
{
	struct frontend *fe = bpf_map_lookup_elem(&fh_frontend_v1, key);

	if (fe)
		return fe;
	key->port = 0;
	key->proto = 0;
	return bpf_map_lookup_elem(&fh_frontend_v1, key);
}

static __always_inline word read_word(const struct frontend *fe)
{
	__u32 at = fe->index * 2 + !!(fe->flags & FRONTEND_LOCAL);
	volatile word *w = bpf_map_lookup_elem(&fh_service_v1, &at);

	return w ? *w : 0;
}

static __always_inline struct backend *backend_at(__u32 set, __u32 slot)
{
	struct backend_key key = {.set = set, .slot = slot};

	return bpf_map_lookup_elem(&fh_backend_v1, &key);
}

static __always_inline struct backend *random_backend(word w)
{
	__u32 count = WORD_COUNT(w), slot = 0;

	if (count == 0)
		return 0;
	if (count > 1) /* scales 32 random bits to 0..count-1 without a division */
		slot = ((__u64)bpf_get_prandom_u32() * count) >> 32;
	return backend_at(WORD_SET(w), slot);
}

/*
 * A backend for a new connection; NULL: the service has none. A writer
 * publishes a set before it flips the word and removes the old set after an
 * RCU grace period, so that a miss can only be seen by a program that was
 * held up between its two reads for longer than that. It reads again, once.
 */
static __always_inline struct backend *choose_backend(const struct frontend *fe)
{
	struct backend *be = random_backend(read_word(fe));

	if (unlikely(!be))
		be = random_backend(read_word(fe));
	return be;
}

/* The backend that has this id in the present set; NULL: it is not there any more. */
static __always_inline struct backend *member_backend(const struct frontend *fe, __u32 id)
{
	word w = read_word(fe);

	if (WORD_COUNT(w) == 0)
		return 0;
	return backend_at(WORD_SET(w), id | BACKEND_MEMBER);
}

#endif
