/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The checksum of SCTP, a CRC32c (RFC 9260, appendix A), when a port changes.
 *
 * A CRC is linear: that of two messages of one length differs by that of their difference, which is the ports' difference
 * followed by zeros only. How far zeros move a CRC is a multiplication by x^(8 n) modulo the polynomial: so what a packet
 * holds need not be read, and its length costs 16 steps at most.
 */
#ifndef FIRSTHOP_LIB_SCTP_H
#define FIRSTHOP_LIB_SCTP_H

#include "checksum.h"
#include "packet.h"

#define SCTP_CHECK 8

/* Bits reversed, as the checksum has them. */
#define CRC32C_POLY 0x82f63b78u

/* a * b modulo the polynomial; the highest bit stands for x^0. */
static __always_inline __u32 crc_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (__u64 i = 0; i < 32; i++) {
		product ^= b & (0 - (a >> 31));
		a <<= 1;
		b = (b >> 1) ^ (CRC32C_POLY & (0 - (b & 1)));
	}
	return product;
}

/* A CRC behind n bytes of zeros, n < 65,536. */
static __noinline __u32 crc_behind_zeros(__u32 crc, __u32 n)
{
	__u32 power = 0x00800000; /* x^8 */

	for (__u64 i = 0; i < 16; i++) {
		__u32 moved = crc_multiply(crc, power), set = 0 - (n >> i & 1);

		crc = (crc & ~set) | (moved & set);
		power = crc_multiply(power, power);
	}
	return crc;
}

/*
 * Corrects the checksum for a port at l4 + at, 0 or 2, that is not changed yet. False: an error. A checksum that the device
 * is to complete is none yet.
 */
static __always_inline bool sctp_port_changes(struct __sk_buff *skb, struct packet *p, __u32 at, __be16 from, __be16 to)
{
	__u32 diff = from ^ to, crc = 0, check, behind = p->end - p->l4 - at - 2;

	if (is_partial(skb, p->l4 + SCTP_CHECK))
		return true;
	/* What comes before the port is zeros in the difference, which leave a CRC of zero. */
	for (__u64 i = 0; i < 16; i++) {
		crc ^= diff & 1;
		diff >>= 1;
		crc = (crc >> 1) ^ (CRC32C_POLY & (0 - (crc & 1)));
	}
	if (behind > 0xffff || bpf_skb_load_bytes(skb, p->l4 + SCTP_CHECK, &check, sizeof(check)))
		return false;
	check ^= crc_behind_zeros(crc, behind);
	return !bpf_skb_store_bytes(skb, p->l4 + SCTP_CHECK, &check, sizeof(check), 0);
}

#endif
