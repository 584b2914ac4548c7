/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Changes addresses and ports of packets, with all checksums that cover them.
 *
 * The kernel's helpers know what a checksum field holds: the whole sum, or, where the device is to complete it
 * (CHECKSUM_PARTIAL), that of the pseudo header alone.
 */
#ifndef FIRSTHOP_LIB_REWRITE_H
#define FIRSTHOP_LIB_REWRITE_H

#include "packet.h"
#include "sctp.h"

#define UDP_CHECK 6
#define TCP_CHECK 16

/* The sum of what an IPv6 address changes by. */
static __always_inline __u32 address_diff(__u64 *from, __u64 *to)
{
	return bpf_csum_diff(from, 16, to, 16, 0);
}

/*
 * Corrects a checksum for an IPv6 address that its pseudo header has. The helper takes it for one of IPv4, where the sum of
 * all bytes of the packet (skb->csum, CHECKSUM_COMPLETE) changes by the checksum alone, as the address is made up for by the
 * header's own. IPv6 has none, so the sum stays: this is put right again (kernel commit ead7f9b8de65, "Fix L4 csum update on IPv6
 * in CHECKSUM_COMPLETE", has a flag for that from 6.16 on; this way works with all).
 */
static __always_inline bool replace_v6_pseudo(struct __sk_buff *skb, __u32 at, __u32 diff, __u64 flags)
{
	if (bpf_l4_csum_replace(skb, at, 0, diff, BPF_F_PSEUDO_HDR | flags))
		return false;
	bpf_csum_update(skb, diff); /* an error where there is no such sum */
	return true;
}

/* Changes the transport header for an address and port of p, SRC or DST. */
static __always_inline bool rewrite_transport(struct __sk_buff *skb, struct packet *p, int which, __u64 *to,
                                              __be16 port)
{
	__be16 former = which == SRC ? sport_of(p->key) : dport_of(p->key);
	__u32 at = p->l4 + (which == SRC ? 0 : 2), check = p->l4 + TCP_CHECK;
	__u64 flags = 0;

	if (p->proto == IPPROTO_SCTP) {
		if (former == port)
			return true;
		return sctp_port_changes(skb, p, which == SRC ? 0 : 2, former, port) &&
		       !bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0);
	}
	if (p->proto == IPPROTO_UDP) {
		check = p->l4 + UDP_CHECK;
		flags = BPF_F_MARK_MANGLED_0;
	}
	if (p->v4) {
		if (bpf_l4_csum_replace(skb, check, v4_of(p->key[which + 1]), v4_of(to[1]),
		                        BPF_F_PSEUDO_HDR | flags | 4))
			return false;
	} else if (!replace_v6_pseudo(skb, check, address_diff(&p->key[which], to), flags)) {
		return false;
	}
	if (former == port)
		return true;
	if (bpf_l4_csum_replace(skb, check, former, port, flags | 2))
		return false;
	return !bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0);
}

/* Changes the address SRC or DST in the network header. */
static __always_inline bool rewrite_network(struct __sk_buff *skb, struct packet *p, int which, __u64 *to)
{
	__u32 at = p->l3;
	__be32 v4;

	if (!p->v4) {
		at += which == SRC ? 8 : 24;
		return !bpf_skb_store_bytes(skb, at, to, 16, 0);
	}
	v4 = v4_of(to[1]);
	if (bpf_l3_csum_replace(skb, at + 10, v4_of(p->key[which + 1]), v4, 4))
		return false;
	at += which == SRC ? 12 : 16;
	return !bpf_skb_store_bytes(skb, at, &v4, sizeof(v4), 0);
}

/* Changes address and port, SRC or DST. False: the packet is not what it was, and must be dropped. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *p, int which, __u64 *to, __be16 port)
{
	if (likely(p->fragment != LATER_FRAGMENT) && !rewrite_transport(skb, p, which, to, port))
		return false;
	return rewrite_network(skb, p, which, to);
}

#endif
