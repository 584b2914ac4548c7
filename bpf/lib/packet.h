/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What a packet says of itself. Nothing here changes it, or asks a map. */
#ifndef FIRSTHOP_LIB_PACKET_H
#define FIRSTHOP_LIB_PACKET_H

#include "address.h"
#include "conntrack_maps.h"
#include "uplink_config.h"

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 version_class_label;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	struct address saddr;
	struct address daddr;
};

#define VLAN_ID 0xfff

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff
#define IP6_MORE_FRAGMENTS 1
#define IP6_OFFSET 0xfff8

#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_DEST 60

/* How many extension headers are looked behind: more than that is no packet that anybody sends. */
#define MAX_EXTENSIONS 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define SCTP_INIT 1
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_SHUTDOWN_COMPLETE 14

/* Words of struct flow_key: see half(). */
#define SRC 0
#define DST 2
#define REST 4

struct packet {
	__u64 key[5];  /* struct flow_key; what of it is not known is zero */
	__u32 l3;      /* where the network header begins */
	__u32 l4;      /* where the transport header begins; of a later fragment, its data */
	__u32 end;     /* where the packet ends, as its network header says: the frame may be longer */
	__be32 id;     /* of the fragmented packet */
	__u8 proto;    /* behind all extension headers */
	__u8 signals;  /* TCP: its flags; SCTP: the type of the first chunk; ICMP: its type */
	__u8 v4;       /* bool */
	__u8 fragment; /* enum fragment_part */
};

enum fragment_part {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT,
};

static __always_inline __u64 v4_half(__be32 addr)
{
	return bpf_htonl(0xffff) | (__u64)addr << 32;
}

static __always_inline __be32 v4_of(__u64 half)
{
	return half >> 32;
}

static __always_inline __be16 sport_of(const __u64 *key)
{
	return key[REST];
}

static __always_inline __be16 dport_of(const __u64 *key)
{
	return key[REST] >> 16;
}

/* Whether an IPv6 address is a v4-mapped one: keys have IPv4 addresses so, and no packet on the wire has any business with them. */
static __always_inline bool is_mapped(const __u64 *addr)
{
	return !addr[0] && (__u32)addr[1] == bpf_htonl(0xffff);
}

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* How many bytes of a transport header tell all that is asked for. */
#define TRANSPORT 14

#define TCP_FLAGS 13
#define SCTP_CHUNK 12

/* Reads the transport header where it is not within reach. False: the packet ends before. */
static __noinline bool load_transport(struct __sk_buff *skb, struct packet *p)
{
	__be16 ports[2] = {};
	__u32 signals = 0;

	switch (p->proto) {
	case IPPROTO_TCP:
		signals = TCP_FLAGS;
		break;
	case IPPROTO_SCTP:
		signals = SCTP_CHUNK;
		break;
	case IPPROTO_UDP:
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return p->fragment != LATER_FRAGMENT && !bpf_skb_load_bytes(skb, p->l4, &p->signals, 1);
	default:
		return false;
	}
	if (p->fragment == LATER_FRAGMENT)
		return true;
	if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
		return false;
	p->key[REST] |= ports[0] | (__u64)ports[1] << 16;
	return !signals || !bpf_skb_load_bytes(skb, p->l4 + signals, &p->signals, 1);
}

/* Reads as much of the transport header as is asked for; *l4 is where it is if that is known, else 0. */
static __always_inline bool parse_transport(struct __sk_buff *skb, struct packet *p, enum way way, void *l4, void *end)
{
	__u8 *bytes = l4;

	p->key[REST] = FLOW_REST(0, 0, p->proto, way);
	if (unlikely(!l4 || l4 + TRANSPORT > end || p->fragment == LATER_FRAGMENT || !has_ports(p->proto)))
		return load_transport(skb, p);
	p->key[REST] |= *(__u32 *)l4;
	p->signals = p->proto == IPPROTO_TCP ? bytes[TCP_FLAGS] : bytes[SCTP_CHUNK];
	return true;
}

static __always_inline bool parse_v4(struct __sk_buff *skb, struct packet *p, enum way way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + p->l3;
	__u16 fragment;

	if ((void *)(ip + 1) > end)
		return false;
	p->v4 = true;
	p->key[SRC] = 0;
	p->key[SRC + 1] = v4_half(ip->saddr);
	p->key[DST] = 0;
	p->key[DST + 1] = v4_half(ip->daddr);
	p->proto = ip->protocol;
	p->l4 = p->l3 + (ip->version_ihl & 0xf) * 4;
	p->end = p->l3 + bpf_htons(ip->tot_len);
	fragment = bpf_htons(ip->frag_off);
	if (unlikely(fragment & (IP_MORE_FRAGMENTS | IP_OFFSET))) {
		p->fragment = fragment & IP_OFFSET ? LATER_FRAGMENT : FIRST_FRAGMENT;
		p->id = ip->id;
	}
	if (unlikely(ip->version_ihl >> 4 != 4 || (ip->version_ihl & 0xf) < 5))
		return false;
	return parse_transport(skb, p, way, (void *)ip + (ip->version_ihl & 0xf) * 4, end);
}

/* Goes from header to header until there is one that has ports, or of ICMP. False: there is none. */
static __always_inline bool skip_extensions(struct __sk_buff *skb, struct packet *p, __u8 next)
{
	struct {
		__u8 next, len;
		__be16 offset;
		__be32 id;
	} ext;

#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		switch (next) {
		case NEXTHDR_HOP:
		case NEXTHDR_ROUTING:
		case NEXTHDR_DEST:
		case NEXTHDR_FRAGMENT:
			break;
		default:
			p->proto = next;
			return true;
		}
		if (bpf_skb_load_bytes(skb, p->l4, &ext, sizeof(ext)))
			return false;
		if (next == NEXTHDR_FRAGMENT) {
			p->id = ext.id;
			ext.len = 0;
			if (ext.offset & bpf_htons(IP6_OFFSET)) {
				p->fragment = LATER_FRAGMENT;
				p->l4 += 8;
				p->proto = ext.next;
				return true;
			}
			if (ext.offset & bpf_htons(IP6_MORE_FRAGMENTS))
				p->fragment = FIRST_FRAGMENT;
		}
		p->l4 += (ext.len + 1) * 8;
		next = ext.next;
	}
	p->proto = next;
	return has_ports(next) || next == IPPROTO_ICMPV6;
}

static __always_inline bool parse_v6(struct __sk_buff *skb, struct packet *p, enum way way)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + p->l3;
	void *l4 = ip + 1;
	__u8 next;

	if (l4 > end)
		return false;
	p->key[SRC] = half(&ip->saddr, 0);
	p->key[SRC + 1] = half(&ip->saddr, 1);
	p->key[DST] = half(&ip->daddr, 0);
	p->key[DST + 1] = half(&ip->daddr, 1);
	if (unlikely(is_mapped(&p->key[SRC]) || is_mapped(&p->key[DST])))
		return false;
	p->l4 = p->l3 + sizeof(*ip);
	p->end = p->l4 + bpf_htons(ip->payload_len);
	next = ip->nexthdr;
	if (likely(has_ports(next))) {
		p->proto = next;
		return parse_transport(skb, p, way, l4, end);
	}
	return skip_extensions(skb, p, next) && parse_transport(skb, p, way, 0, 0);
}

/*
 * Reads a packet, which *p is for; zero before. False: no packet that a program at an uplink could have something to do
 * with. The network header is made linear, which it nearly always is.
 *
 * Frames of a VLAN pass the device below, too, while their tag is beside them: they are the VLAN's device's, which may be in
 * another network namespace. A tag without a VLAN has a priority only.
 */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *p, enum way way)
{
	__u32 need;
	bool v4;

	if (unlikely(skb->vlan_present) && skb->vlan_tci & VLAN_ID)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		v4 = true;
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		v4 = false;
	else
		return false;
	p->l3 = network_offset();
	need = p->l3 + (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (unlikely((void *)(long)skb->data + need > (void *)(long)skb->data_end) && bpf_skb_pull_data(skb, need))
		return false;
	return v4 ? parse_v4(skb, p, way) : parse_v6(skb, p, way);
}

#endif
