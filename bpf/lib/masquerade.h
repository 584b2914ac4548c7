/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* A source of this node for packets to a backend that is elsewhere: so its answers come back here. */
#ifndef FIRSTHOP_LIB_MASQUERADE_H
#define FIRSTHOP_LIB_MASQUERADE_H

#include "conntrack.h"
#include "count.h"
#include "masquerade_maps.h"

#define PORT_TRIES 8

/*
 * Chooses the source of the packets of p, and writes its address and port to source. The entry of the answers is written
 * first: it says whether the port is free for that backend. COUNT_FLOW, or why there is none.
 */
static __noinline enum packet_count masquerade(const struct packet *p, __u32 ifindex, __u32 index, __u64 *source)
{
	__u64 lookup[3] = {160 | (__u64)ifindex << 32, p->key[DST], p->key[DST + 1]};
	__u64 zero = 0, now = bpf_ktime_get_ns(), in[5], value[4];
	struct address *addr = bpf_map_lookup_elem(&fh_masquerade, lookup);
	struct packet_control *ctl = bpf_map_lookup_elem(&fh_packet_ctl, &zero);

	if (!addr || is_v4(addr) != p->v4) /* what is said of ::/0 holds for v4-mapped addresses, too */
		return COUNT_NO_SOURCE;
	if (!ctl || !ctl->ports)
		return COUNT_NO_PORT;
	in[SRC] = p->key[DST];
	in[SRC + 1] = p->key[DST + 1];
	in[DST] = half(addr, 0);
	in[DST + 1] = half(addr, 1);
	flow_value(value, &p->key[SRC], sport_of(p->key), FLOW_MASQUERADE, index, now);
	for (__u64 i = 0; i < PORT_TRIES; i++) {
		__be16 port = bpf_htons(ctl->first_port + (((__u64)bpf_get_prandom_u32() * ctl->ports) >> 32));

		in[REST] = FLOW_REST(dport_of(p->key), port, p->proto, WAY_IN);
		if (bpf_map_update_elem(&fh_conntrack, in, value, BPF_NOEXIST))
			continue;
		flow_value(value, &in[DST], port, FLOW_MASQUERADE | FLOW_REPLIED, index, now);
		bpf_map_update_elem(&fh_conntrack, p->key, value, BPF_ANY);
		source[0] = in[DST];
		source[1] = in[DST + 1];
		source[2] = port;
		return COUNT_FLOW;
	}
	return COUNT_NO_PORT;
}

#endif
