/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The map set "packet": what the programs at uplinks remember of the packets that they translate. User space creates
 * these maps only where the packet path is on (bpf/packetmaps.go).
 */
#ifndef FIRSTHOP_LIB_CONNTRACK_MAPS_H
#define FIRSTHOP_LIB_CONNTRACK_MAPS_H

#include "address.h"

/* Which way packets of an entry go. */
enum way {
	WAY_IN = 0,  /* into the node: their destination is changed */
	WAY_OUT = 1, /* out of it: their source is changed */
};

/* The packets of one flow that go one way, as the hook sees them before it changes them. */
struct flow_key {
	struct address src;
	struct address dst;
	__be16 sport; /* network byte order */
	__be16 dport;
	__u8 proto; /* IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP */
	__u8 way;   /* enum way */
	__u16 pad;  /* always 0 */
};
_Static_assert(sizeof(struct flow_key) == 40, "layout");

/* What follows the addresses in struct flow_key, as programs write it: see half(). */
#define FLOW_REST(sport, dport, proto, way) \
	((__u64)(sport) | (__u64)(dport) << 16 | (__u64)(proto) << 32 | (__u64)(way) << 40)

enum flow_flags {
	FLOW_REPLIED = 1 << 0,    /* packets went out, too */
	FLOW_FIN = 1 << 1,        /* this way has ended: TCP FIN, SCTP SHUTDOWN */
	FLOW_FIN_OTHER = 1 << 2,  /* the other way has */
	FLOW_RESET = 1 << 3,      /* TCP RST, SCTP ABORT, by the backend */
	FLOW_STACK = 1 << 4,      /* was begun under another service proxy: it is left to the stack */
	FLOW_MASQUERADE = 1 << 5, /* packets get a source of this node; while port is zero, it is not chosen yet */
	FLOW_CUT = 1 << 6,        /* the same from outside: by anybody who knows addresses and ports */
};

/*
 * What becomes of the packets of a flow. Entries come in pairs: where packets in, from s to d, get the destination v,
 * those out, from v to s, get the source d. So each half of a pair can be made from the other: see flow_touch().
 *
 * A client's flow to a backend is one pair. If the backend is behind an uplink, there is a second pair: packets out
 * from the client to the backend get a source of this node, packets in from the backend to that get the client as destination.
 */
struct flow {
	struct address addr;
	__be16 port; /* network byte order */
	__u16 flags; /* enum flow_flags */
	__u32 index; /* of the service; 0: none, or not known any more */
	__u64 seen;  /* ns of the monotonic clock, up to a second before the last packet */
};
_Static_assert(sizeof(struct flow) == 32, "layout");

/* Flows. Programs write and read; user space removes what has ended (runtime/conntrack), and may write FLOW_STACK. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} fh_conntrack SEC(".maps");

/* A packet in fragments: all but the first lack ports. */
struct fragment_key {
	struct address src;
	struct address dst;
	__be32 id;  /* IPv4: 16 bits, in the low half */
	__u8 proto; /* of the fragmented packet */
	__u8 way;   /* enum way */
	__u16 pad;  /* always 0 */
};
_Static_assert(sizeof(struct fragment_key) == 40, "layout");

struct fragment {
	__be16 sport;
	__be16 dport;
	__u32 at; /* when the first one came: the monotonic clock in units of 2^30 ns */
};
_Static_assert(sizeof(struct fragment) == 8, "layout");

/* Fragmented packets of flows. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fh_fragment SEC(".maps");

/* What became of packets that were not simply passed on. Twin of bpf/packetlayout.go. */
enum packet_count {
	COUNT_FLOW,           /* new flows to a backend */
	COUNT_REJECTED,       /* answered by RST or ICMP: nothing serves the address and port */
	COUNT_REJECT_LIMITED, /* the same, dropped: more than the limit of answers */
	COUNT_REJECT_FAILED,  /* the same, dropped: no answer could be made, as for packets with IP options */
	COUNT_NO_LOCAL,       /* dropped: no backend on this node, by the Service's policy */
	COUNT_SOURCE_RANGE,   /* dropped: the client is not in the Service's source ranges */
	COUNT_FRAGMENT,       /* dropped: a fragment that came before the first one of its packet */
	COUNT_CLASH,     /* dropped: the client has the same connection to all backends tried, by another frontend */
	COUNT_NO_PORT,   /* dropped: 8 ports were tried for masquerade, all in use for that backend */
	COUNT_NO_SOURCE, /* dropped: this node has no address for masquerade by that device */
	COUNT_REDIRECT,  /* dropped: an ICMP redirect for a translated flow: it would bypass this node */
	COUNT_MALFORMED, /* dropped: of a flow, and could not be rewritten */
	COUNTS,
};

/* enum packet_count -> how many. All CPUs add to one. Programs write, user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} fh_packets SEC(".maps");

#endif
