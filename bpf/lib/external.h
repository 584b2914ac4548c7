/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Where a flow goes that a client outside the cluster begins. */
#ifndef FIRSTHOP_LIB_EXTERNAL_H
#define FIRSTHOP_LIB_EXTERNAL_H

#include "conntrack.h"
#include "lb.h"
#include "source_range.h"

/* How many backends are tried for a client that has the same connection already, by another frontend. */
#define BACKEND_TRIES 4

/* What became of it; else it is dropped, for this reason (enum packet_count). */
enum begun {
	BEGUN_NOT = -1,    /* no Service's packet */
	BEGUN_FLOW = -2,   /* its entries are written */
	BEGUN_REJECT = -3, /* nothing serves it */
};

/* Who a client is, for backends that clients keep. The highest bit keeps it apart from cookies of network namespaces. */
static __always_inline __u64 client_of(const __u64 *key)
{
	__u64 low = key[SRC + 1];

	return 1ull << 63 | (key[SRC] * 0x9e3779b97f4a7c15ull ^ (low << 32 | low >> 32));
}

/* The mark of an address that only Services have, to clients outside. */
static __always_inline bool external_vip(const __u64 *key, struct frontend *fe)
{
	__u64 at[3] = {key[DST], key[DST + 1], FRONTEND_KEY(FRONTEND_MARK_PORT, 0, 0)};

	return read_frontend(bpf_map_lookup_elem(&fh_frontend, at), fe);
}

static __always_inline bool find_external(const __u64 *key, struct frontend *fe)
{
	__u64 rest = FRONTEND_KEY(dport_of(key), key[REST] >> 32 & 0xff, 0);
	__u64 at[3] = {key[DST], key[DST + 1], rest};

	if (read_frontend(bpf_map_lookup_elem(&fh_frontend, at), fe) && fe->flags & FRONTEND_EXTERNAL)
		return true;
	return external_vip(key, fe);
}

static __always_inline bool in_ranges(__u32 index, const __u64 *key)
{
	__u64 at[] = {160 | (__u64)index << 32, key[SRC], key[SRC + 1]};

	return bpf_map_lookup_elem(&fh_source_range, at);
}

/* Whether packets of a backend may be led to a frontend: whether the entry that says so is written, or was there. */
static __always_inline bool claim_way_out(const __u64 *out, const __u64 *value, __u8 proto, __u64 now)
{
	struct flow *former;

	if (!bpf_map_update_elem(&fh_conntrack, out, value, BPF_NOEXIST))
		return true;
	former = bpf_map_lookup_elem(&fh_conntrack, out);
	if (!former || flow_over(former, proto, now) ||
	    (half(&former->addr, 0) == value[0] && half(&former->addr, 1) == value[1] &&
	     former->port == (__be16)value[2]))
		return !bpf_map_update_elem(&fh_conntrack, out, value, BPF_ANY);
	return false;
}

/*
 * Writes the entries of a flow to a backend: packets out before packets in, so that no answer is missed. The third one
 * marks packets to the backend: if they leave this node, they get a source of it (masquerade.h); otherwise nobody asks for it.
 */
static __always_inline bool write_flow(const __u64 *key, const struct frontend *fe, const struct backend *be, __u64 now)
{
	__u8 proto = key[REST] >> 32 & 0xff;
	__u64 addr[2] = {half(&be->addr, 0), half(&be->addr, 1)};
	__u64 out[5] = {addr[0], addr[1], key[SRC], key[SRC + 1], FLOW_REST(be->port, sport_of(key), proto, WAY_OUT)};
	__u64 value[4];

	flow_value(value, &key[DST], dport_of(key), 0, fe->index, now);
	if (!claim_way_out(out, value, proto, now))
		return false;
	if (!(be->flags & BACKEND_LOCAL)) {
		__u64 none[2] = {};

		out[SRC] = key[SRC];
		out[SRC + 1] = key[SRC + 1];
		out[DST] = addr[0];
		out[DST + 1] = addr[1];
		out[REST] = FLOW_REST(sport_of(key), be->port, proto, WAY_OUT);
		flow_value(value, none, 0, FLOW_MASQUERADE, fe->index, now);
		bpf_map_update_elem(&fh_conntrack, out, value, BPF_ANY);
	}
	flow_value(value, addr, be->port, 0, fe->index, now);
	return !bpf_map_update_elem(&fh_conntrack, key, value, BPF_ANY);
}

/* Begins the flow that a packet asks for; its backend is in *to then. Who calls counts: see enum begun. */
static __noinline int begin_flow(const __u64 *key, struct backend *to)
{
	struct frontend fe;
	__u64 now, client;

	if (!find_external(key, &fe))
		return BEGUN_NOT;
	if (fe.flags & FRONTEND_VIP) {
		count(0, false);
		return BEGUN_REJECT;
	}
	if (fe.flags & (FRONTEND_SOURCE_RANGE | FRONTEND_EXTERNAL_RANGE) && !in_ranges(fe.index, key)) {
		count(fe.index, false);
		return COUNT_SOURCE_RANGE;
	}
	/* What connect time goes by is none of a client's outside: the address may be a cluster IP and an external IP. */
	fe.flags &= ~FRONTEND_LOCAL_POLICY;
	if (fe.flags & FRONTEND_EXTERNAL_LOCAL)
		fe.flags |= FRONTEND_LOCAL_POLICY;
	now = bpf_ktime_get_ns();
	client = client_of(key);
	for (__u64 i = 0; i < BACKEND_TRIES; i++) {
		struct backend be = {};

		choose_backend(&fe, client, &be);
		if (!be.id)
			break;
		if (write_flow(key, &fe, &be, now)) {
			*to = be;
			count(fe.index, true);
			return BEGUN_FLOW;
		}
		if (i == BACKEND_TRIES - 1)
			return COUNT_CLASH;
	}
	count(fe.index, false);
	return has_backends_elsewhere(&fe) ? COUNT_NO_LOCAL : BEGUN_REJECT;
}

#endif
