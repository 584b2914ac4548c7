/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From frontend to backend. Nothing here knows about sockets or packets.
 */
#ifndef FIRSTHOP_LIB_LB_H
#define FIRSTHOP_LIB_LB_H

#include "lb_maps.h"
#include "lookup.h"

static __always_inline struct counters *counters_of(__u32 index)
{
	return bpf_map_lookup_elem(&fh_counter, &index);
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
 * Whether an address leads to this host by its loopback device: a loopback
 * address, or the unspecified one, which becomes the loopback address that the
 * kernel takes it for (ip_route_output_key_hash_rcu, tcp_v6_connect).
 */
static __always_inline bool to_loopback(struct address *addr)
{
	if (is_zero(addr))
		addr->word[3] = is_v4(addr) ? bpf_htonl(0x7f000001) : bpf_htonl(1);
	return is_loopback(addr);
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

/* Whether a port may be a node port at other nodes. */
static __always_inline bool maybe_node_port(__be16 port)
{
	__u32 zero = 0;
	volatile __u64 *blocks = bpf_map_lookup_elem(&fh_node_ports, &zero);

	return blocks && *blocks >> (bpf_htons(port) >> 10) & 1;
}

/*
 * The frontend that *l asks for, copied to *fe; false: not ours. *fe is zero then, and
 * no pointer is NULL: below 5.16 the verifier forgets which one was, once it is on the stack. A hit is one
 * lookup. A miss is two: the address may be loopback, where all addresses of a
 * family have one entry for a node port, or a VIP that doesn't serve this
 * port. For ports like those of node ports it is three, as it may be an address of another node, where a
 * fourth says whether it is a node port.
 */
static __always_inline bool find_frontend(struct lookup *l, struct frontend *fe)
{
	struct frontend_key key = {.addr = l->addr, .port = l->port, .proto = l->proto};
	struct frontend *entry = bpf_map_lookup_elem(&fh_frontend, &key);

	l->loopback = false;
	if (entry)
		return read_frontend(entry, fe);
	l->loopback = to_loopback(&l->addr);
	if (l->loopback) {
		key.addr.word[3] = bpf_htonl(0x7f000000);
		return read_frontend(bpf_map_lookup_elem(&fh_frontend, &key), fe);
	}
	key.port = 0;
	key.proto = 0;
	entry = bpf_map_lookup_elem(&fh_frontend, &key);
	if (entry)
		return read_frontend(entry, fe);
	key.nodes = 1;
	if (!maybe_node_port(l->port) || !bpf_map_lookup_elem(&fh_frontend, &key))
		return read_frontend(0, fe);
	key.addr.word[0] = 0;
	key.addr.word[1] = 0;
	key.addr.word[2] = is_v4(&l->addr) ? bpf_htonl(0xffff) : 0;
	key.addr.word[3] = 0;
	key.port = l->port;
	key.proto = l->proto;
	return read_frontend(bpf_map_lookup_elem(&fh_frontend, &key), fe);
}

static __always_inline service_state read_state(const struct frontend *fe)
{
	__u32 at = fe->index * 2 + !!(fe->flags & FRONTEND_LOCAL_POLICY);
	volatile service_state *s = bpf_map_lookup_elem(&fh_service, &at);

	return s ? *s : 0;
}

static __always_inline struct backend *backend_at(__u32 set, __u32 slot)
{
	struct backend_key key = {.set = set, .slot = slot};

	return bpf_map_lookup_elem(&fh_backend, &key);
}

static __always_inline struct backend *random_backend(service_state s)
{
	__u32 count = STATE_COUNT(s), slot = 0;

	if (count == 0)
		return 0;
	if (count > 1) /* scales 32 random bits to 0..count-1 without a division */
		slot = ((__u64)bpf_get_prandom_u32() * count) >> 32;
	return backend_at(STATE_SET(s), slot);
}

/* The backend that has this id in a set; NULL: it is not there, or not any more. */
static __always_inline struct backend *member_of(service_state s, __u32 id)
{
	return backend_at(STATE_SET(s), id | BACKEND_MEMBER);
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
 * The backend that a client keeps for a service; NULL: none, or not any more.
 * Time is that of the client's last connection, as kube-proxy's is.
 */
static __always_inline struct backend *kept_backend(struct affinity_key *key, service_state s, __u32 now)
{
	volatile affinity *old = bpf_map_lookup_elem(&fh_affinity, key);
	struct backend *limit, *be;
	affinity a;

	if (!old)
		return 0;
	a = *old;
	limit = backend_at(STATE_SET(s), SLOT_AFFINITY);
	/* Signed: another CPU may have connected for this client in a second that has begun since. */
	if (!limit || (__s32)(now - AFFINITY_USED(a)) > (__s32)limit->id)
		return 0;
	be = member_of(s, AFFINITY_ID(a));
	if (be && AFFINITY_USED(a) != now)
		*old = AFFINITY_OF(AFFINITY_ID(a), now);
	return be;
}

/*
 * A backend for a new connection; NULL: the service has none. A writer
 * publishes a set before it flips the state and removes the old set after an
 * RCU grace period, so that a miss can only be seen by a program that was
 * held up between its two reads for longer than that. It reads again, once.
 */
static __always_inline struct backend *choose_backend(const struct frontend *fe, __u64 client)
{
	struct affinity_key key = {.client = client, .index = fe->index};
	service_state s = read_state(fe);
	bool keeps = keeps_clients(s);
	struct backend *be;
	affinity new;
	__u32 now = 0;

	if (keeps) {
		now = seconds();
		be = kept_backend(&key, s, now);
		if (be)
			return be;
	}
	be = random_backend(s);
	if (unlikely(!be))
		be = random_backend(read_state(fe));
	if (be && keeps) {
		new = AFFINITY_OF(be->id, now);
		bpf_map_update_elem(&fh_affinity, &key, &new, BPF_ANY);
	}
	return be;
}

/* The backend that has this id in the present set; NULL: it is not there any more. */
static __always_inline struct backend *member_backend(const struct frontend *fe, __u32 id)
{
	service_state s = read_state(fe);

	return STATE_COUNT(s) ? member_of(s, id) : 0;
}

/* Whether what has no backend here has some elsewhere: such connections are dropped, not refused. */
static __always_inline bool has_backends_elsewhere(const struct frontend *fe)
{
	return STATE_SET(read_state(fe)) & SET_DROP;
}

#endif
