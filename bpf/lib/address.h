/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
#ifndef FIRSTHOP_LIB_ADDRESS_H
#define FIRSTHOP_LIB_ADDRESS_H

#include "../include/bpf.h"

/* An address of either family; IPv4 as ::ffff:a.b.c.d. Network byte order. */
struct address {
	__be32 word[4];
};

/*
 * Half of an address, 0 or 1. Keys and values that programs have on their stack are arrays of such words of 8
 * bytes: where less is written at a time, the verifier takes what was there before for what may still be read
 * (check_stack_write_fixed_off: "only mark the slot as written if all 8 bytes were written"), keeps apart what differs in
 * nothing else, and goes through all that follows once for each. The layouts are those of the structs that the maps name,
 * little-endian.
 */
static __always_inline __u64 half(const struct address *addr, int which)
{
	return addr->word[2 * which] | (__u64)addr->word[2 * which + 1] << 32;
}

/*
 * Without a branch for each word: what the verifier learns of a word by one, it keeps apart until the end of the program, and
 * goes through what follows once for each outcome.
 */
static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
	         (a->word[3] ^ b->word[3]));
}

static __always_inline bool is_v4(const struct address *addr)
{
	return addr->word[2] == bpf_htonl(0xffff);
}

/* Whether there is nothing in an address but that it is of IPv4, if it is. */
static __always_inline bool is_zero(const struct address *addr)
{
	__be32 rest = addr->word[0] | addr->word[1] | addr->word[3];

	return !(rest | addr->word[2]) || !(rest | (addr->word[2] ^ bpf_htonl(0xffff)));
}

/* 127.0.0.0/8, or ::1. */
static __always_inline bool is_loopback(const struct address *addr)
{
	__be32 rest = addr->word[0] | addr->word[1];
	__be32 v4 =
		(addr->word[2] ^ bpf_htonl(0xffff)) | ((addr->word[3] & bpf_htonl(0xff000000)) ^ bpf_htonl(0x7f000000));
	__be32 v6 = addr->word[2] | (addr->word[3] ^ bpf_htonl(1));

	return !(rest | v4) || !(rest | v6);
}

#endif
