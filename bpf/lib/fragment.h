/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Fragments: what has no ports gets those of the first one of its packet. */
#ifndef FIRSTHOP_LIB_FRAGMENT_H
#define FIRSTHOP_LIB_FRAGMENT_H

#include "packet.h"

/*
 * How long the other fragments of a packet may take, in units of 2^30 ns: as long as receivers wait for them (ipfrag_time). After
 * 65,536 packets of IPv4 there is another one with the same id.
 */
#define FRAGMENT_TIME 28

static __always_inline __u32 fragment_clock(void)
{
	return bpf_ktime_get_ns() >> 30;
}

static __always_inline void fragment_key(__u64 *key, const struct packet *p, enum way way)
{
	key[0] = p->key[SRC];
	key[1] = p->key[SRC + 1];
	key[2] = p->key[DST];
	key[3] = p->key[DST + 1];
	key[4] = p->id | (__u64)p->proto << 32 | (__u64)way << 40;
}

/* Remembers the ports of a first fragment. */
static __noinline int fragment_remember(const struct packet *p)
{
	enum way way = p->key[REST] >> 40 & 0xff;
	__u64 key[5], value = (__u32)p->key[REST] | (__u64)fragment_clock() << 32;

	fragment_key(key, p, way);
	return bpf_map_update_elem(&fh_fragment, key, &value, BPF_ANY);
}

/*
 * Remembers the ports of a packet that came in, for when it leaves with another destination: its first fragment may be lost
 * between, as one that is too large for the next device, and the others must not leave with the client's source.
 * Changes p.
 */
static __always_inline void fragment_expect(struct packet *p, const __u64 *addr, __be16 port)
{
	p->key[DST] = addr[0];
	p->key[DST + 1] = addr[1];
	p->key[REST] = FLOW_REST(sport_of(p->key), port, p->proto, WAY_OUT);
	fragment_remember(p);
}

/* Gives a later fragment its ports. False: its first one has not come, or is of no flow. */
static __noinline bool fragment_ports(struct packet *p)
{
	enum way way = p->key[REST] >> 40 & 0xff;
	struct fragment *first;
	__u64 key[5];

	fragment_key(key, p, way);
	first = bpf_map_lookup_elem(&fh_fragment, key);
	if (!first || (__s32)(fragment_clock() - first->at) > FRAGMENT_TIME)
		return false;
	p->key[REST] = FLOW_REST(first->sport, first->dport, p->proto, way);
	return true;
}

#endif
