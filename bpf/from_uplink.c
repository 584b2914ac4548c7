//go:build ignore

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Packets that come in by a device that leads off the node (tc, ingress): their destination is changed from a Service to a backend,
 * or from this node to the client whose packet was masqueraded. Sources are never changed here: all that
 * follows, as routing, netfilter and rp_filter, sees client and backend.
 */
#include "lib/count.h"
#include "lib/external.h"
#include "lib/fragment.h"
#include "lib/icmp.h"
#include "lib/reject.h"
#include "lib/rewrite.h"

static __always_inline int to_destination(struct __sk_buff *skb, struct packet *p, __u64 *addr, __be16 port)
{
	if (unlikely(p->fragment == FIRST_FRAGMENT))
		fragment_remember(p);
	if (unlikely(!rewrite(skb, p, DST, addr, port)))
		return drop(p->key, COUNT_MALFORMED);
	if (unlikely(p->fragment == FIRST_FRAGMENT))
		fragment_expect(p, addr, port);
	return TC_ACT_UNSPEC;
}

/* Beside what tc takes for a verdict: the packet is to be answered, which begin() has no room for on the stack; it is of a flow. */
#define ANSWER 100
#define GO_ON 101

/* A packet that may begin a flow, without an entry or with one that has ended. */
static __noinline int begin(struct __sk_buff *skb, struct packet *p)
{
	struct backend be = {};
	__u64 addr[2];
	int begun;

	begun = begin_flow(p->key, &be);
	switch (begun) {
	case BEGUN_NOT:
		return TC_ACT_UNSPEC;
	case BEGUN_REJECT:
		return ANSWER;
	case BEGUN_FLOW:
		break;
	default:
		return drop(p->key, begun);
	}
	count_packet(p->key, COUNT_FLOW, &be.addr, be.port);
	addr[0] = half(&be.addr, 0);
	addr[1] = half(&be.addr, 1);
	return to_destination(skb, p, addr, be.port);
}

/* A fragment whose first one has not come. It is nobody's but at an address that only Services have. */
static __noinline int without_ports(struct packet *p)
{
	struct frontend fe;

	return external_vip(p->key, &fe) ? drop(p->key, COUNT_FRAGMENT) : TC_ACT_UNSPEC;
}

/* A packet of the stack's. If it is in fragments, the others are, too: see without_ports(). */
static __noinline int leave(struct packet *p)
{
	struct frontend fe;

	if (p->fragment == FIRST_FRAGMENT && external_vip(p->key, &fe))
		fragment_remember(p);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int fh_from_uplink(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow *f;
	__u64 addr[2];
	__be16 port;
	bool stack;

	/* Frames to others, as with a device in promiscuous mode, and broadcasts are no Service's. */
	if (skb->pkt_type != PACKET_HOST || !parse(skb, &p, WAY_IN))
		return TC_ACT_UNSPEC;
	if (unlikely(!has_ports(p.proto)))
		return is_error(&p) ? translate_error(skb, &p) : TC_ACT_UNSPEC;
	if (unlikely(p.fragment == LATER_FRAGMENT) && !fragment_ports(&p))
		return without_ports(&p);
	f = bpf_map_lookup_elem(&fh_conntrack, p.key);
	if (!f || unlikely(flow_ended(f))) {
		int verdict = begins_flow(&p) ? begin(skb, &p) : f ? GO_ON : leave(&p);

		if (unlikely(verdict == ANSWER))
			return reject(skb, &p);
		if (verdict != GO_ON)
			return verdict;
	}
	/* Before the flow's partner is made anew, which may evict the entry. */
	flow_addr(f, addr);
	port = f->port;
	stack = f->flags & FLOW_STACK;
	flow_touch(&p, f, WAY_IN);
	if (unlikely(stack))
		return leave(&p);
	return to_destination(skb, &p, addr, port);
}

char _license[] SEC("license") = "Dual BSD/GPL";
