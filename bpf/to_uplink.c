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

/*
 * Whether a packet of a flow that has ended is of a connection that begins now: one that came by no frontend, as that would have
 * begun the flow anew. Its client asks for the backend directly, from the port that it had before.
 */
static __always_inline bool answers_other(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->signals & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
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
	if (unlikely(flow_ended(f)) && answers_other(&p)) {
		bpf_map_delete_elem(&fh_conntrack, p.key);
		return TC_ACT_UNSPEC;
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
