/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_ADDRESS_H
#define FIRSTHOP_LIB_ADDRESS_H

#include "../include/bpf.h"

/* An address of either family; IPv4 as ::ffff:a.b.c.d. Network byte order. */
struct address {
	__be32 word[4];
};

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool is_v4(const struct address *addr)
{
	return addr->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_zero(const struct address *addr)
{
	return !addr->word[0] && !addr->word[1] && !addr->word[3] &&
	       (!addr->word[2] || addr->word[2] == bpf_htonl(0xffff));
}

/* 127.0.0.0/8, or ::1. */
static __always_inline bool is_loopback(const struct address *addr)
{
	if (addr->word[0] || addr->word[1])
		return false;
	if (is_v4(addr))
		return (addr->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !addr->word[2] && addr->word[3] == bpf_htonl(1);
}

#endif
