/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Which frontend a connection of a socket, or its datagram, asks for. */
#ifndef FIRSTHOP_LIB_FRONTEND_H
#define FIRSTHOP_LIB_FRONTEND_H

#include "lb.h"
#include "lookup.h"
#include "node_ports_maps.h"

/*
 * Whether an address leads to this host by its loopback device: a loopback
 * address, or the unspecified one, which becomes the loopback address that the
 * kernel takes it for (ip_route_output_key_hash_rcu, tcp_v6_connect).
 */
static __always_inline bool to_loopback(struct address *addr)
{
	if (is_zero(addr))
		addr->word[3] = is_v4(addr) ? bpf_htonl(0x7f000001) : bpf_htonl(1);
	return is_loopback(addr);
}

/* Whether a port may be a node port at other nodes. */
static __always_inline bool maybe_node_port(__be16 port)
{
	__u64 zero = 0;
	volatile __u64 *blocks = bpf_map_lookup_elem(&fh_node_ports, &zero);

	return blocks && *blocks >> (bpf_htons(port) >> 10) & 1;
}

/*
 * The frontend that *l asks for, copied to *fe; false: not ours. *fe is zero then, and
 * no pointer is NULL: below 5.16 the verifier forgets which one was, once it is on the stack. A hit is one
 * lookup. A miss is two: the address may be loopback, where all addresses of a
 * family have one entry for a node port, or a VIP that doesn't serve this
 * port. For ports like those of node ports it is three, as it may be an address of another node, where a
 * fourth says whether it is a node port.
 */
static __always_inline bool find_frontend(struct lookup *l, struct frontend *fe)
{
	__u64 asked = FRONTEND_KEY(l->port, l->proto, 0);
	__u64 key[3] = {half(&l->addr, 0), half(&l->addr, 1), asked};
	struct frontend *entry = bpf_map_lookup_elem(&fh_frontend, key);

	l->loopback = false;
	if (entry)
		return read_frontend(entry, fe);
	l->loopback = to_loopback(&l->addr);
	if (l->loopback) {
		key[1] = (__u32)key[1] | (__u64)bpf_htonl(0x7f000000) << 32;
		return read_frontend(bpf_map_lookup_elem(&fh_frontend, key), fe);
	}
	key[2] = 0;
	entry = bpf_map_lookup_elem(&fh_frontend, key);
	if (entry)
		return read_frontend(entry, fe);
	key[2] = FRONTEND_KEY(0, 0, 1);
	if (!maybe_node_port(l->port) || !bpf_map_lookup_elem(&fh_frontend, key))
		return read_frontend(0, fe);
	key[0] = 0;
	key[1] = is_v4(&l->addr) ? bpf_htonl(0xffff) : 0;
	key[2] = asked | FRONTEND_KEY(0, 0, 1);
	return read_frontend(bpf_map_lookup_elem(&fh_frontend, key), fe);
}

#endif
