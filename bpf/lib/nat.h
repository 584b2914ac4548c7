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

/* The address that stands for addr and all other loopback addresses of its family; false: addr is none. */
static __always_inline bool loopback_of(struct address *addr)
{
	if (addr->word[0] || addr->word[1])
		return false;
	if (addr->word[2] == bpf_htonl(0xffff) && (addr->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000)) {
		addr->word[3] = bpf_htonl(0x7f000000);
		return true;
	}
	if (addr->word[2] == 0 && addr->word[3] == bpf_htonl(1)) {
		addr->word[3] = bpf_htonl(0x7f000000);
		return true;
	}
	return false;
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

/*
 * The frontend behind key, copied to *fe; false: not ours, leave it alone. *fe is zero then, and
 * no pointer is NULL: below 5.16 the verifier forgets which one was, once it is on the stack. A hit is one
 * lookup. A miss is two: the address may be a loopback address with a node
 * port, or a VIP that doesn't serve this port. On a miss key is changed;
 * *loopback says that a hit is for the host's own namespace only.
 */
static __always_inline bool find_frontend(struct frontend_key *key, bool *loopback, struct frontend *fe)
{
	struct frontend *entry = bpf_map_lookup_elem(&fh_frontend_v1, key);

	*loopback = false;
	if (entry)
		return read_frontend(entry, fe);
	*loopback = loopback_of(&key->addr);
	if (!*loopback) {
		key->port = 0;
		key->proto = 0;
	}
	return read_frontend(bpf_map_lookup_elem(&fh_frontend_v1, key), fe);
}

/* Whether an address that is no frontend is of the Service range, and nobody else's to serve. */
static __always_inline bool unallocated(const struct address *addr)
{
	struct range_key key = {.prefix_len = 160, .index = RANGE_SERVICES, .addr = *addr};

	if (!bpf_map_lookup_elem(&fh_range_v1, &key))
		return false;
	key.index = RANGE_OTHERS;
	return !bpf_map_lookup_elem(&fh_range_v1, &key);
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

/* The backend that has this id in a set; NULL: it is not there, or not any more. */
static __always_inline struct backend *member_of(word w, __u32 id)
{
	return backend_at(WORD_SET(w), id | BACKEND_MEMBER);
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
static __always_inline bool keeps_clients(word w)
{
	_Static_assert(SET_AFFINITY == 1u << 31, "the shifts below");
	asm volatile("%0 <<= 32\n\t"
	             "%0 >>= 63"
	             : "+r"(w));
	return w;
}

/*
 * The backend that a client keeps for a service; NULL: none, or not any more.
 * Time is that of the client's last connection, as kube-proxy's is.
 */
static __always_inline struct backend *kept_backend(struct affinity_key *key, word w, __u32 now)
{
	volatile affinity *old = bpf_map_lookup_elem(&fh_affinity_v1, key);
	struct backend *limit, *be;
	affinity a;

	if (!old)
		return 0;
	a = *old;
	limit = backend_at(WORD_SET(w), SLOT_AFFINITY);
	/* Signed: another CPU may have connected for this client in a second that has begun since. */
	if (!limit || (__s32)(now - AFFINITY_USED(a)) > (__s32)limit->id)
		return 0;
	be = member_of(w, AFFINITY_ID(a));
	if (be && AFFINITY_USED(a) != now)
		*old = AFFINITY_OF(AFFINITY_ID(a), now);
	return be;
}

/*
 * A backend for a new connection; NULL: the service has none. A writer
 * publishes a set before it flips the word and removes the old set after an
 * RCU grace period, so that a miss can only be seen by a program that was
 * held up between its two reads for longer than that. It reads again, once.
 */
static __always_inline struct backend *choose_backend(const struct frontend *fe, __u64 client)
{
	struct affinity_key key = {.client = client, .index = fe->index};
	word w = read_word(fe);
	bool keeps = keeps_clients(w);
	struct backend *be;
	affinity new;
	__u32 now = 0;

	if (keeps) {
		now = seconds();
		be = kept_backend(&key, w, now);
		if (be)
			return be;
	}
	be = random_backend(w);
	if (unlikely(!be))
		be = random_backend(read_word(fe));
	if (be && keeps) {
		new = AFFINITY_OF(be->id, now);
		bpf_map_update_elem(&fh_affinity_v1, &key, &new, BPF_ANY);
	}
	return be;
}

/* The backend that has this id in the present set; NULL: it is not there any more. */
static __always_inline struct backend *member_backend(const struct frontend *fe, __u32 id)
{
	word w = read_word(fe);

	return WORD_COUNT(w) ? member_of(w, id) : 0;
}

/* Whether what has no backend here has some elsewhere: such connections are dropped, not refused. */
static __always_inline bool has_backends_elsewhere(const struct frontend *fe)
{
	return WORD_SET(read_word(fe)) & SET_DROP;
}

#endif
