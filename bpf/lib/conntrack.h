/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The flows that packets belong to. */
#ifndef FIRSTHOP_LIB_CONNTRACK_H
#define FIRSTHOP_LIB_CONNTRACK_H

#include "packet.h"

/* How long a flow without packets counts as there, if it is not of TCP. As netfilter's for UDP with answers. */
#define FLOW_IDLE (180 * 1000000000ull)

/* How far behind the last packet flow.seen may be. */
#define FLOW_PRECISION 1000000000ull

/* How long nothing may come of a flow that was cut off from outside until that is believed. */
#define FLOW_CUT_TIME (2 * FLOW_PRECISION)

/* Whether both sides have ended a flow, or the backend has cut it off: the next one with this key is another. */
static __always_inline bool flow_ended(const struct flow *f)
{
	return f->flags & FLOW_RESET || (f->flags & (FLOW_FIN | FLOW_FIN_OTHER)) == (FLOW_FIN | FLOW_FIN_OTHER);
}

/* Whether the entry of a flow is in nobody's way any more. */
static __always_inline bool flow_over(const struct flow *f, __u8 proto, __u64 now)
{
	return flow_ended(f) || (f->flags & FLOW_CUT && now - f->seen > FLOW_CUT_TIME) ||
	       (proto != IPPROTO_TCP && now - f->seen > FLOW_IDLE);
}

/* An entry, whole words at a time: see half(). */
static __always_inline void flow_value(__u64 *value, const __u64 *addr, __be16 port, __u16 flags, __u32 index,
                                       __u64 now)
{
	value[0] = addr[0];
	value[1] = addr[1];
	value[2] = port | (__u64)flags << 16 | (__u64)index << 32;
	value[3] = now;
}

static __always_inline void flow_addr(const struct flow *f, __u64 *addr)
{
	addr[0] = half(&f->addr, 0);
	addr[1] = half(&f->addr, 1);
}

/* The key of an entry's partner: see struct flow. */
static __always_inline void partner_key(__u64 *partner, const __u64 *key, const struct flow *f, enum way way)
{
	if (way == WAY_IN) {
		flow_addr(f, &partner[SRC]);
		partner[DST] = key[SRC];
		partner[DST + 1] = key[SRC + 1];
		partner[REST] = FLOW_REST(f->port, sport_of(key), key[REST] >> 32 & 0xff, WAY_OUT);
	} else {
		partner[SRC] = key[DST];
		partner[SRC + 1] = key[DST + 1];
		flow_addr(f, &partner[DST]);
		partner[REST] = FLOW_REST(dport_of(key), f->port, key[REST] >> 32 & 0xff, WAY_IN);
	}
}

/* Makes an entry anew that was evicted, from its partner. */
static __always_inline void restore_partner(const __u64 *partner, const __u64 *key, const struct flow *f, enum way way,
                                            __u64 now)
{
	__u16 flags = f->flags & (FLOW_REPLIED | FLOW_MASQUERADE), other = way == WAY_IN ? DST : SRC;
	__u64 value[4];

	if (f->flags & FLOW_FIN)
		flags |= FLOW_FIN_OTHER;
	if (f->flags & FLOW_FIN_OTHER)
		flags |= FLOW_FIN;
	flow_value(value, &key[other], way == WAY_IN ? dport_of(key) : sport_of(key), flags, f->index, now);
	bpf_map_update_elem(&fh_conntrack, partner, value, BPF_NOEXIST);
}

/* Notes a packet in its entry and the entry's partner. A flow that has packets a while after it was cut off was not. */
static __noinline int flow_note(const __u64 *key, struct flow *f, __u64 now, __u16 flags)
{
	__u16 kept = ~0;
	enum way way = key[REST] >> 40 & 0xff;
	struct flow *partner;
	__u64 other[5];

	if (!(flags & FLOW_CUT) && now - f->seen > FLOW_PRECISION)
		kept = ~FLOW_CUT;
	f->seen = now;
	f->flags = (f->flags & kept) | flags;
	if (f->flags & FLOW_STACK)
		return 0;
	partner_key(other, key, f, way);
	partner = bpf_map_lookup_elem(&fh_conntrack, other);
	if (!partner) {
		restore_partner(other, key, f, way, now);
		return 0;
	}
	partner->seen = now;
	if (flags & FLOW_FIN)
		partner->flags |= FLOW_FIN_OTHER;
	partner->flags = (partner->flags & kept) | (flags & (FLOW_RESET | FLOW_CUT | FLOW_REPLIED));
	return 0;
}

/* What a packet says of its flow's end. */
static __always_inline __u16 signals_of(const struct packet *p)
{
	__u16 flags = 0;

	if (p->proto == IPPROTO_TCP) {
		if (p->signals & TCP_FIN)
			flags = FLOW_FIN;
		if (p->signals & TCP_RST)
			flags |= FLOW_RESET;
	} else if (p->proto == IPPROTO_SCTP) {
		if (p->signals == SCTP_SHUTDOWN)
			flags = FLOW_FIN;
		if (p->signals == SCTP_ABORT || p->signals == SCTP_SHUTDOWN_COMPLETE)
			flags = FLOW_RESET;
	}
	return flags;
}

/* Notes a packet where that changes something: once a second, and what begins or ends a flow. */
static __always_inline void flow_touch(const struct packet *p, struct flow *f, enum way way)
{
	__u64 now = bpf_ktime_get_ns();
	__u16 flags = signals_of(p);

	/*
	 * Sequence numbers, which would tell, are not followed. So what comes from outside does not end a flow at once: its client's
	 * next packets still go to the same backend, which knows.
	 */
	if (unlikely(flags & FLOW_RESET && (way == WAY_IN || f->flags & FLOW_MASQUERADE)))
		flags = FLOW_CUT;
	if (way == WAY_OUT)
		flags |= FLOW_REPLIED;
	if (unlikely(now - f->seen > FLOW_PRECISION || flags & ~f->flags))
		flow_note(p->key, f, now, flags);
}

/* Whether a packet may begin a flow: any but one of the middle of a connection. */
static __always_inline bool begins_flow(const struct packet *p)
{
	switch (p->proto) {
	case IPPROTO_TCP:
		return (p->signals & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	case IPPROTO_SCTP:
		return p->signals == SCTP_INIT;
	}
	return p->proto == IPPROTO_UDP;
}

#endif
