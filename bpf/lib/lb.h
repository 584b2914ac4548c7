/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From frontend to backend. Nothing here knows about sockets or packets.
 */
#ifndef FIRSTHOP_LIB_LB_H
#define FIRSTHOP_LIB_LB_H

#include "lb_maps.h"

/* Counts what was asked of a service: translated, or refused. */
static __always_inline void count(__u32 index, bool translated)
{
	__u64 at = index;
	struct counters *c = bpf_map_lookup_elem(&fh_counter, &at);

	if (c)
		__sync_fetch_and_add(translated ? &c->translated : &c->refused, 1);
}

/*
 * Copies an entry by one aligned load: a writer changes index and flags
 * together, by one store, while programs run (nat.Kernel.ChangeFrontends). A
 * program goes on with what it read.
 */
static __always_inline bool read_frontend(const struct frontend *entry, struct frontend *fe)
{
	__u64 both = 0;

	if (entry)
		both = *(const volatile __u64 *)entry;
	fe->index = (__u32)both;
	fe->flags = both >> 32;
	return entry;
}

static __always_inline service_state read_state(const struct frontend *fe)
{
	__u64 at = fe->index * 2 + !!(fe->flags & FRONTEND_LOCAL_POLICY);
	volatile service_state *s = bpf_map_lookup_elem(&fh_service, &at);

	return s ? *s : 0;
}

static __always_inline struct backend *backend_at(__u32 set, __u32 slot)
{
	__u64 key = (__u64)slot << 32 | set;

	return bpf_map_lookup_elem(&fh_backend, &key);
}

/*
 * Functions that choose a backend copy it to *to, which is zero before, and leave that alone where there is none: whether
 * it has an id tells. With pointers, the verifier goes through what follows once for each place that one came from.
 */
static __always_inline void copy_backend(__u32 set, __u32 slot, struct backend *to)
{
	const struct backend *be = backend_at(set, slot);

	if (be)
		*to = *be;
}

static __always_inline void random_backend(service_state s, struct backend *to)
{
	__u32 count = STATE_COUNT(s), slot = 0;

	if (count == 0)
		return;
	if (count > 1) /* scales 32 random bits to 0..count-1 without a division */
		slot = ((__u64)bpf_get_prandom_u32() * count) >> 32;
	copy_backend(STATE_SET(s), slot, to);
}

/* The backend that has this id in a set, if it is there still. */
static __always_inline void member_of(service_state s, __u32 id, struct backend *to)
{
	copy_backend(STATE_SET(s), id | BACKEND_MEMBER, to);
}

static __always_inline __u32 seconds(void)
{
	return bpf_ktime_get_ns() / 1000000000;
}

/*
 * Whether clients of a set keep their backend. Shifted rather than masked: the verifiers of Linux 5.7 to 5.10 and of
 * RHEL 8.3 take a 64-bit value whose bit 31 alone may be set for zero once it was compared, and remove what lies
 * behind the next comparison as dead code (fixed by kernel commit b02709587ea3). Written as assembly, since the compiler
 * turns the shifts back into a mask.
 */
static __always_inline bool keeps_clients(service_state s)
{
	_Static_assert(SET_AFFINITY == 1u << 31, "the shifts below");
	asm volatile("%0 <<= 32\n\t"
	             "%0 >>= 63"
	             : "+r"(s));
	return s;
}

/*
 * The backend that a client keeps for a service, if there is one, and it is there still.
 * Time is that of the client's last connection, as kube-proxy's is.
 */
static __always_inline void kept_backend(const __u64 *key, service_state s, __u32 now, struct backend *to)
{
	volatile affinity *old = bpf_map_lookup_elem(&fh_affinity, key);
	struct backend *limit;
	affinity a;

	if (!old)
		return;
	a = *old;
	limit = backend_at(STATE_SET(s), SLOT_AFFINITY);
	/* Signed: another CPU may have connected for this client in a second that has begun since. */
	if (!limit || (__s32)(now - AFFINITY_USED(a)) > (__s32)limit->id)
		return;
	member_of(s, AFFINITY_ID(a), to);
	if (to->id && AFFINITY_USED(a) != now)
		*old = AFFINITY_OF(AFFINITY_ID(a), now);
}

/*
 * A backend for a new connection, if the service has one. A writer
 * publishes a set before it flips the state and removes the old set after an
 * RCU grace period, so that a miss can only be seen by a program that was
 * held up between its two reads for longer than that. It reads again, once.
 */
static __always_inline void choose_backend(const struct frontend *fe, __u64 client, struct backend *to)
{
	__u64 key[2] = {client, fe->index};
	service_state s = read_state(fe);
	bool keeps = keeps_clients(s);
	__u32 now = keeps ? seconds() : 0;
	affinity new;

	if (keeps)
		kept_backend(key, s, now, to);
	if (to->id)
		return;
	random_backend(s, to);
	if (unlikely(!to->id))
		random_backend(read_state(fe), to);
	if (to->id && keeps) {
		new = AFFINITY_OF(to->id, now);
		bpf_map_update_elem(&fh_affinity, key, &new, BPF_ANY);
	}
}

/* The backend that has this id in the present set, if it is there still. */
static __always_inline void member_backend(const struct frontend *fe, __u32 id, struct backend *to)
{
	service_state s = read_state(fe);

	if (STATE_COUNT(s))
		member_of(s, id, to);
}

/* Whether what has no backend here has some elsewhere: such connections are dropped, not refused. */
static __always_inline bool has_backends_elsewhere(const struct frontend *fe)
{
	return STATE_SET(read_state(fe)) & SET_DROP;
}

#endif
