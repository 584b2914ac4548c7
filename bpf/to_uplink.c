//go:build ignore

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Packets that leave by a device that leads off the node (tc, egress): their source is changed from a backend to the Service, or, where they are
 * a client's and go to a backend elsewhere, from the client to this node. Destinations are never changed here.
 */
#include "lib/fragment.h"
#include "lib/icmp.h"
#include "lib/masquerade.h"
#include "lib/rewrite.h"

/* Whether a packet accepts a connection. */
static __always_inline bool accepts(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->signals & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Takes a flow for one that was not cut off: the reset was late, and of the connection before. */
static __noinline int flow_revive(const __u64 *key, struct flow *f)
{
	struct flow *partner;
	__u64 other[5];

	f->flags &= ~FLOW_RESET;
	partner_key(other, key, f, key[REST] >> 40 & 0xff);
	partner = bpf_map_lookup_elem(&fh_conntrack, other);
	if (partner)
		partner->flags &= ~FLOW_RESET;
	return 0;
}

SEC("tc")
int fh_to_uplink(struct __sk_buff *skb)
{
	struct packet p = {};
	__u64 source[3];
	struct flow *f;

	if (!parse(skb, &p, WAY_OUT))
		return TC_ACT_UNSPEC;
	if (unlikely(!has_ports(p.proto)))
		return is_error(&p) ? translate_error(skb, &p) : TC_ACT_UNSPEC;
	if (unlikely(p.fragment == LATER_FRAGMENT) && !fragment_ports(&p))
		return TC_ACT_UNSPEC;
	f = bpf_map_lookup_elem(&fh_conntrack, p.key);
	if (!f || f->flags & FLOW_STACK)
		return TC_ACT_UNSPEC;
	if (unlikely(flow_ended(f)) && accepts(&p)) {
		/*
		 * Both sides had ended it: the client has connected to the backend directly, from the port that it had before. By a
		 * frontend, it would have begun the flow anew.
		 */
		if (!(f->flags & FLOW_RESET)) {
			bpf_map_delete_elem(&fh_conntrack, p.key);
			return TC_ACT_UNSPEC;
		}
		flow_revive(p.key, f);
	}
	if (unlikely(!f->port)) {
		enum packet_count why = masquerade(&p, skb->ifindex, f->index, source);

		if (why != COUNT_FLOW)
			return drop(p.key, why);
	} else {
		flow_addr(f, source); /* before the flow's partner is made anew, which may evict the entry */
		source[2] = f->port;
		flow_touch(&p, f, WAY_OUT);
	}
	if (unlikely(p.fragment == FIRST_FRAGMENT))
		fragment_remember(&p);
	if (unlikely(!rewrite(skb, &p, SRC, source, source[2])))
		return drop(p.key, COUNT_MALFORMED);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
