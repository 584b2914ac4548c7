/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_CHECKSUM_H
#define FIRSTHOP_LIB_CHECKSUM_H

#include "../include/bpf.h"

/*
 * Whether the device is to complete the checksum at an offset. A change that the helper makes for a byte which is no part
 * of a pseudo header tells: it does nothing then. The field is as before afterwards.
 */
static __always_inline bool is_partial(struct __sk_buff *skb, __u32 at)
{
	__u16 before = 0, after = 0;

	bpf_skb_load_bytes(skb, at, &before, sizeof(before));
	bpf_l4_csum_replace(skb, at, 0, 0x1234, 2);
	bpf_skb_load_bytes(skb, at, &after, sizeof(after));
	bpf_skb_store_bytes(skb, at, &before, sizeof(before), 0);
	return before == after;
}

/* A sum of 16-bit words as a checksum has it, not inverted. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

#endif
