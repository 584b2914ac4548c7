/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The answer to a packet that nothing serves, made of the packet itself: RST for TCP, port unreachable for the others. It
 * goes back by the device and to the neighbour that the packet came from.
 */
#ifndef FIRSTHOP_LIB_REJECT_H
#define FIRSTHOP_LIB_REJECT_H

#include "checksum.h"
#include "count.h"
#include "packet.h"
#include "reject_maps.h"
#include "rewrite.h"

/* One answer a millisecond and CPU, and so many at once. As the kernel's own (icmp_msgs_per_sec, icmp_msgs_burst). */
#define REJECT_INTERVAL 1000000ull
#define REJECT_BURST (50 * REJECT_INTERVAL)

#define HOPS 64
#define IP_DONT_FRAGMENT 0x4000
#define TOS_ICMP 0xc0 /* as the kernel's errors: internetwork control */

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff; /* in its high half, in words */
	__u8 flags;
	__be16 window;
	__u16 check;
	__be16 urg_ptr;
};

static __always_inline bool may_answer(void)
{
	__u64 zero = 0, now = bpf_ktime_get_ns(), tokens;
	struct reject_limit *limit = bpf_map_lookup_elem(&fh_reject, &zero);

	if (!limit)
		return false;
	tokens = limit->tokens + (now - limit->at);
	if (tokens > REJECT_BURST || !limit->at)
		tokens = REJECT_BURST;
	limit->at = now;
	limit->tokens = tokens;
	if (tokens < REJECT_INTERVAL)
		return false;
	limit->tokens = tokens - REJECT_INTERVAL;
	return true;
}

/* Whether an address can be a single host's elsewhere: nobody else gets an answer (RFC 1122, 3.2.2; RFC 4443, 2.4). */
static __always_inline bool is_host(const __u64 *addr, bool v4)
{
	__u8 first = v4 ? addr[1] >> 32 : addr[0];

	if (v4) /* this network, loopback, multicast and broadcast */
		return first != 0 && first != 127 && first < 224;
	return first != 0xff && (addr[0] || addr[1] & ~(1ull << 56));
}

static __always_inline bool swap_link_addresses(struct __sk_buff *skb)
{
	__u8 mac[12], back[12];

	if (!network_offset())
		return true;
	if (bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return false;
	if (mac[6] & 1) /* to all of a segment */
		return false;
	__builtin_memcpy(back, mac + 6, 6);
	__builtin_memcpy(back + 6, mac, 6);
	return !bpf_skb_store_bytes(skb, 0, back, sizeof(back), 0);
}

/* Writes a network header for an answer, of which the transport part takes len bytes. */
static __always_inline bool write_network(struct __sk_buff *skb, const struct packet *p, __u8 proto, __u16 len,
                                          __u8 tos)
{
	if (p->v4) {
		struct iphdr ip = {
			.version_ihl = 0x45,
			.tos = tos,
			.tot_len = bpf_htons(sizeof(ip) + len),
			.frag_off = bpf_htons(IP_DONT_FRAGMENT),
			.ttl = HOPS,
			.protocol = proto,
			.saddr = v4_of(p->key[DST + 1]),
			.daddr = v4_of(p->key[SRC + 1]),
		};

		ip.check = ~fold(bpf_csum_diff(0, 0, &ip, sizeof(ip), 0));
		return !bpf_skb_store_bytes(skb, p->l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		__u64 ip[5] = {
			bpf_htonl(0x60000000 | tos << 20) |
				(__u64)(bpf_htons(len) | (__u32)proto << 16 | (__u32)HOPS << 24) << 32,
			p->key[DST],
			p->key[DST + 1],
			p->key[SRC],
			p->key[SRC + 1],
		};

		return !bpf_skb_store_bytes(skb, p->l3, ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
}

/* The sum of the pseudo header of an answer. */
static __always_inline __u32 pseudo_sum(const struct packet *p, __u8 proto, __u16 len)
{
	__u64 words[5] = {p->key[SRC], p->key[SRC + 1], p->key[DST], p->key[DST + 1],
	                  (__u64)bpf_htons(len) | (__u64)bpf_htons(proto) << 32};

	if (p->v4) { /* the two ffff of v4-mapped addresses are zero in a sum, but not to the compiler */
		words[1] &= ~0xffffffffull;
		words[3] &= ~0xffffffffull;
	}
	return bpf_csum_diff(0, 0, (void *)words, sizeof(words), 0);
}

/* What follows the options of a TCP header, and SYN and FIN, take up a sequence number each. */
static __always_inline __u32 sequence_length(const struct packet *p, const struct tcphdr *tcp)
{
	__u32 len = p->end - p->l4 - (tcp->doff >> 4) * 4;

	if (tcp->flags & TCP_SYN)
		len++;
	if (tcp->flags & TCP_FIN)
		len++;
	return len;
}

static __always_inline bool answer_tcp(struct __sk_buff *skb, const struct packet *p)
{
	bool partial = is_partial(skb, p->l4 + TCP_CHECK);
	struct tcphdr tcp, rst = {};
	__u32 sum;

	if (bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
		return false;
	rst.doff = sizeof(rst) / 4 << 4;
	rst.flags = tcp.flags & TCP_ACK ? TCP_RST : TCP_RST | TCP_ACK;
	rst.source = tcp.dest;
	rst.dest = tcp.source;
	if (tcp.flags & TCP_ACK)
		rst.seq = tcp.ack_seq;
	else
		rst.ack_seq = bpf_htonl(bpf_htonl(tcp.seq) + sequence_length(p, &tcp));
	sum = pseudo_sum(p, IPPROTO_TCP, sizeof(rst));
	if (partial)
		rst.check = fold(sum); /* the device adds the rest */
	else
		rst.check = ~fold(bpf_csum_diff(0, 0, (void *)&rst, sizeof(rst), sum));
	return !bpf_skb_change_tail(skb, p->l4 + sizeof(rst), 0) &&
	       write_network(skb, p, IPPROTO_TCP, sizeof(rst), 0) &&
	       !bpf_skb_store_bytes(skb, p->l4, &rst, sizeof(rst), BPF_F_RECOMPUTE_CSUM);
}

/* How much of a transport header an error quotes: what every one has, and receivers need. */
#define QUOTED_TRANSPORT 8

/*
 * Port unreachable. Where the device is to complete the packet's checksum, it will do so in what is quoted, by what is there then: the
 * sum of the error is made for that.
 */
static __always_inline bool answer_icmp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 header = p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 at = p->l3 + header, sum;
	__u8 proto = p->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	__u16 len = 8 + header + QUOTED_TRANSPORT;
	struct {
		__u8 type, code;
		__u16 check;
		__u32 unused;
		__u8 quoted[sizeof(struct ipv6hdr) + QUOTED_TRANSPORT];
	} icmp = {.type = p->v4 ? 3 : 1, .code = p->v4 ? 3 : 4};
	bool partial = p->proto == IPPROTO_UDP && is_partial(skb, p->l4 + UDP_CHECK);

	if (p->v4 ? bpf_skb_load_bytes(skb, p->l3, icmp.quoted, sizeof(struct iphdr) + QUOTED_TRANSPORT)
	          : bpf_skb_load_bytes(skb, p->l3, icmp.quoted, sizeof(icmp.quoted)))
		return false;
	if (partial) {
		__u8 *udp = icmp.quoted + header;

		sum = ~fold(bpf_csum_diff(0, 0, (void *)udp, QUOTED_TRANSPORT, 0));
		/* Stands for what the device will write. */
		udp[6] = sum;
		udp[7] = sum >> 8;
	}
	sum = p->v4 ? 0 : pseudo_sum(p, proto, len);
	if (p->v4)
		sum = bpf_csum_diff(0, 0, (void *)&icmp, 8 + sizeof(struct iphdr) + QUOTED_TRANSPORT, sum);
	else
		sum = bpf_csum_diff(0, 0, (void *)&icmp, sizeof(icmp), sum);
	icmp.check = ~fold(sum);
	if (bpf_skb_change_tail(skb, p->l4 + QUOTED_TRANSPORT, 0) ||
	    bpf_skb_adjust_room(skb, header + 8, BPF_ADJ_ROOM_MAC, 0) ||
	    !write_network(skb, p, proto, len, p->v4 ? TOS_ICMP : 0))
		return false;
	/* What is quoted is there already. */
	return !bpf_skb_store_bytes(skb, at, &icmp, 8, BPF_F_RECOMPUTE_CSUM);
}

/*
 * Answers a packet. Not one with IP options or extension headers, which nobody uses for Services: there, the answer's place is
 * not where the header ends.
 */
static __noinline int reject(struct __sk_buff *skb, const struct packet *p)
{
	__u32 header = p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (p->l4 != p->l3 + header || p->fragment)
		return drop(p->key, COUNT_REJECT_FAILED);
	if (p->proto == IPPROTO_TCP && p->signals & TCP_RST)
		return TC_ACT_SHOT;
	if (!is_host(&p->key[SRC], p->v4))
		return drop(p->key, COUNT_REJECT_FAILED);
	if (!may_answer())
		return drop(p->key, COUNT_REJECT_LIMITED);
	if (p->proto == IPPROTO_TCP ? !answer_tcp(skb, p) : !answer_icmp(skb, p))
		return drop(p->key, COUNT_REJECT_FAILED);
	if (!swap_link_addresses(skb))
		return drop(p->key, COUNT_REJECT_FAILED);
	count_packet(p->key, COUNT_REJECTED, 0, 0);
	return bpf_redirect(skb->ifindex, 0);
}

#endif
