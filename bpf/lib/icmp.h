/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * ICMP and ICMPv6 errors about packets of flows: translated outside and in what they quote, so that who gets one knows
 * the packet. The checksum of what is quoted is left as it was: it is of the packet as it was sent.
 */
#ifndef FIRSTHOP_LIB_ICMP_H
#define FIRSTHOP_LIB_ICMP_H

#include "conntrack.h"
#include "count.h"
#include "rewrite.h"

#define ICMP_CHECK 2
#define ICMP_HLEN 8

#define ICMP_REDIRECT 5
#define ICMPV6_REDIRECT 137

static __always_inline bool is_error(const struct packet *p)
{
	__u8 type = p->signals;

	if (p->proto == IPPROTO_ICMP) /* unreachable, redirect, time exceeded, parameter problem */
		return p->v4 && (type == 3 || type == ICMP_REDIRECT || type == 11 || type == 12);
	return !p->v4 && ((type >= 1 && type <= 4) || type == ICMPV6_REDIRECT);
}

static __always_inline bool is_redirect(const struct packet *p)
{
	return p->signals == (p->v4 ? ICMP_REDIRECT : ICMPV6_REDIRECT);
}

/* Reads the packet that an error quotes, as if it were one by itself. */
static __always_inline bool parse_quoted(struct __sk_buff *skb, const struct packet *p, struct packet *quoted)
{
	__be16 ports[2];

	quoted->l3 = p->l4 + ICMP_HLEN;
	if (p->signals == ICMPV6_REDIRECT)
		return false; /* its quotation is behind options; who forwards translated packets must not send any */
	quoted->v4 = p->v4;
	if (p->v4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, quoted->l3, &ip, sizeof(ip)) || ip.frag_off & bpf_htons(IP_OFFSET))
			return false;
		quoted->key[SRC + 1] = v4_half(ip.saddr);
		quoted->key[DST + 1] = v4_half(ip.daddr);
		quoted->l4 = quoted->l3 + (ip.version_ihl & 0xf) * 4;
		quoted->proto = ip.protocol;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, quoted->l3, &ip, sizeof(ip)))
			return false;
		quoted->key[SRC] = half(&ip.saddr, 0);
		quoted->key[SRC + 1] = half(&ip.saddr, 1);
		quoted->key[DST] = half(&ip.daddr, 0);
		quoted->key[DST + 1] = half(&ip.daddr, 1);
		if (is_mapped(&quoted->key[SRC]) || is_mapped(&quoted->key[DST]))
			return false;
		quoted->l4 = quoted->l3 + sizeof(ip);
		if (!skip_extensions(skb, quoted, ip.nexthdr) || quoted->fragment == LATER_FRAGMENT)
			return false;
	}
	if (!has_ports(quoted->proto) || bpf_skb_load_bytes(skb, quoted->l4, ports, sizeof(ports)))
		return false;
	quoted->key[REST] = FLOW_REST(ports[0], ports[1], quoted->proto, 0);
	return true;
}

/* The flow of the packets that would answer the quoted one. */
static __always_inline void answers_of(const struct packet *quoted, __u64 *key, enum way way)
{
	key[SRC] = quoted->key[DST];
	key[SRC + 1] = quoted->key[DST + 1];
	key[DST] = quoted->key[SRC];
	key[DST + 1] = quoted->key[SRC + 1];
	key[REST] = FLOW_REST(dport_of(quoted->key), sport_of(quoted->key), quoted->proto, way);
}

/* Changes SRC or DST of what is quoted, and the checksum of the ICMP header for it. */
static __always_inline bool rewrite_quoted(struct __sk_buff *skb, const struct packet *p, struct packet *quoted,
                                           int which, __u64 *to, __be16 port)
{
	__be16 former = which == SRC ? sport_of(quoted->key) : dport_of(quoted->key);
	__u32 check = p->l4 + ICMP_CHECK, at = quoted->l4 + (which == SRC ? 0 : 2);

	/* IPv4: the header's own checksum makes up for the address. */
	if (!p->v4 && bpf_l4_csum_replace(skb, check, 0, address_diff(&quoted->key[which], to), 0))
		return false;
	if (former != port &&
	    (bpf_l4_csum_replace(skb, check, former, port, 2) || bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0)))
		return false;
	return rewrite_network(skb, quoted, which, to);
}

/* Changes SRC or DST of the error itself. */
static __always_inline bool rewrite_error(struct __sk_buff *skb, struct packet *p, int which, __u64 *to)
{
	if (!p->v4 && !replace_v6_pseudo(skb, p->l4 + ICMP_CHECK, address_diff(&p->key[which], to), 0))
		return false;
	return rewrite_network(skb, p, which, to);
}

/*
 * Translates an error that comes in or goes out, if it is about a flow.
 *
 * In: it quotes what went out, with its source translated, and goes to that source. Out: it quotes what came in, with its
 * destination translated; if the destination itself complains, it does so by the name that its peer knows.
 *
 * Errors go to who sent the packet that they quote. One that goes to anybody else is none that a host or router makes: it
 * is left alone, as by netfilter (nf_conntrack_inet_error).
 *
 * A redirect is dropped, as by netfilter (nf_nat_icmp_reply_translation): its receiver would go past this node.
 */
static __noinline int translate_error(struct __sk_buff *skb, struct packet *p)
{
	enum way way = p->key[REST] >> 40 & 0xff;
	struct packet quoted = {};
	__u64 key[5], to[2];
	struct flow *f;
	__be16 port;
	bool done;

	if (p->fragment || !parse_quoted(skb, p, &quoted))
		return TC_ACT_UNSPEC;
	if ((p->key[DST] ^ quoted.key[SRC]) | (p->key[DST + 1] ^ quoted.key[SRC + 1]))
		return TC_ACT_UNSPEC;
	answers_of(&quoted, key, way);
	f = bpf_map_lookup_elem(&fh_conntrack, key);
	if (!f || f->flags & FLOW_STACK || !f->port)
		return TC_ACT_UNSPEC;
	if (is_redirect(p))
		return drop(p->key, COUNT_REDIRECT);
	flow_addr(f, to);
	port = f->port;
	if (way == WAY_IN)
		done = rewrite_quoted(skb, p, &quoted, SRC, to, port) && rewrite_error(skb, p, DST, to);
	else
		done = rewrite_quoted(skb, p, &quoted, DST, to, port) &&
		       ((p->key[SRC] ^ key[SRC]) | (p->key[SRC + 1] ^ key[SRC + 1]) || rewrite_error(skb, p, SRC, to));
	return done ? TC_ACT_UNSPEC : drop(p->key, COUNT_MALFORMED);
}

#endif
