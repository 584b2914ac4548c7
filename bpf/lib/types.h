/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What the programs share with user space: keys and values of the NAT table.
 * The Go twins are in bpf/layout.go; bpf/layout_test.go holds them against the
 * object's BTF. A change of any of them is a new layout version (LayoutVersion
 * in bpf/pins.go).
 */
#ifndef FIRSTHOP_LIB_TYPES_H
#define FIRSTHOP_LIB_TYPES_H

#include "../include/bpf.h"

/* An address of either family; IPv4 as ::ffff:a.b.c.d. Network byte order. */
struct address {
	__be32 word[4];
};

/*
 * A frontend: what a client connects to. A node port on the loopback addresses
 * has 127.0.0.0 or ::127.0.0.0 here, once for all of them. With port and proto zero the entry
 * stands for the address as a whole and marks it as a VIP, whose other ports
 * are refused.
 */
struct frontend_key {
	struct address addr;
	__be16 port; /* network byte order */
	__u8 proto;  /* IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP; 0: the address itself */
	__u8 pad;    /* always 0: keys are compared as bytes */
};
_Static_assert(sizeof(struct frontend_key) == 20, "layout");

/* Flags of a frontend. */
enum frontend_flags {
	FRONTEND_VIP = 1 << 0,     /* marks an address: no service behind it, refuse */
	FRONTEND_LOCAL = 1 << 1,   /* use the service's word for local traffic */
	FRONTEND_STICKY = 1 << 2,  /* unconnected UDP sockets keep their backend */
	FRONTEND_LIMITED = 1 << 3, /* only clients of the service's source ranges are let in */
};

/* Changed by one 8-byte store, and read by one load: read_frontend() in lib/nat.h. */
struct frontend {
	__u32 index; /* of the service, host byte order; 0: none */
	__u32 flags; /* enum frontend_flags */
};
_Static_assert(sizeof(struct frontend) == 8, "layout");

/*
 * The services array holds two words an index: 2*index for cluster traffic,
 * 2*index+1 for local traffic. A word is the id of a backend set in its low 32
 * bits and the number of slots in its high 32 bits, in one aligned 8-byte
 * value, so that a writer changes both by one store and a reader never sees
 * half of each. Zero: no backend.
 */
typedef __u64 word;
#define WORD_SET(w) ((__u32)(w))
#define WORD_COUNT(w) ((__u32)((w) >> 32))

/*
 * A backend is found by set and slot, 0 <= slot < count. Where the frontend is
 * sticky, each one is there a second time under its id, which has
 * BACKEND_MEMBER set: so "is the backend that I used before in the present
 * set" is one lookup.
 */
#define BACKEND_MEMBER 0x80000000u
struct backend_key {
	__u32 set;
	__u32 slot;
};
_Static_assert(sizeof(struct backend_key) == 8, "layout");

/* The high bits of a set's id say what it is like. */
#define SET_DROP 0x40000000u     /* empty; connections are dropped, not refused */
#define SET_AFFINITY 0x80000000u /* clients keep their backend; has member entries and SLOT_AFFINITY */

/* The entry of a set with SET_AFFINITY whose id is for how many seconds after its last connection a client keeps its backend. */
#define SLOT_AFFINITY 0x7fffffffu

struct backend {
	struct address addr;
	__be16 port; /* network byte order */
	__u16 flags; /* none yet, 0 */
	__u32 id;    /* BACKEND_MEMBER | 31 bits, unique in its set, kept from set to set */
};
_Static_assert(sizeof(struct backend) == 24, "layout");

/* By service index; all CPUs add to one. Index 0 counts VIPs' unserved ports and unallocated addresses. */
struct counters {
	__u64 translated; /* connects, and datagrams of unconnected sockets, sent to a backend */
	__u64 refused;    /* no backend, an unserved port or address */
};
_Static_assert(sizeof(struct counters) == 16, "layout");

/*
 * The way back of a TCP socket, for getpeername and for the proof: a direct
 * mapped cache, by the low bits of the socket cookie. Cookies are handed out
 * in sequence, so an entry lives until some 65,536 later sockets were
 * translated, much like in an LRU of that size and at a tenth of the price
 * (docs/decisions/0002). The lock keeps two sockets of one slot from mixing.
 * User space writes entries without frontend and backend: see bypasses() in
 * reverse.h. Programs that know nothing of them overwrite them.
 */
struct peer {
	struct bpf_spin_lock lock;
	__be16 frontend_port; /* network byte order */
	__be16 backend_port;  /* network byte order */
	__u64 cookie;
	struct address frontend;
	struct address backend;
};
_Static_assert(sizeof(struct peer) == 48, "layout");

/* The way back of a UDP socket: one entry for each backend that it talks to. */
struct reverse_key {
	__u64 cookie;
	struct address backend;
	__be16 port; /* network byte order */
	__u16 pad0;  /* always 0 */
	__u32 pad1;  /* always 0 */
};
_Static_assert(sizeof(struct reverse_key) == 32, "layout");

struct reverse {
	struct address frontend;
	__be16 port; /* network byte order */
	__u16 pad;   /* always 0 */
	__u32 index; /* of the service */
};
_Static_assert(sizeof(struct reverse) == 24, "layout");

/*
 * The backend that an unconnected UDP socket keeps for a service: a QUIC
 * connection must not change its server with each datagram.
 */
struct flow_key {
	__u64 cookie;
	__u32 index; /* of the service */
	__u32 local; /* 1: chosen by the word for local traffic */
};
_Static_assert(sizeof(struct flow_key) == 16, "layout");

struct flow {
	__u32 id; /* backend.id */
	__u32 pad;
};
_Static_assert(sizeof(struct flow) == 8, "layout");

/*
 * The clients that a service's limited frontends let in, and, at indexes that
 * no service has, the addresses that Services have. An LPM trie; the value says
 * nothing.
 */
struct range_key {
	__u32 prefix_len; /* bits of index and addr together */
	__u32 index;      /* of the service, or one of the two below */
	struct address addr;
};
_Static_assert(sizeof(struct range_key) == 24, "layout");

#define RANGE_SERVICES 0         /* addresses of Services: who connects to one that is no frontend is refused */
#define RANGE_OTHERS 0xffffffffu /* of them, those that are not ours to refuse */

/* The backend that a client keeps: one entry a service, over all its frontends. */
struct affinity_key {
	__u64 client; /* cookie of the network namespace: of a pod, or of the node; 0 below 5.7 */
	__u32 index;  /* of the service */
	__u32 pad;    /* always 0 */
};
_Static_assert(sizeof(struct affinity_key) == 16, "layout");

/* One aligned 8-byte value, so that id and used are of one connection: backend.id, then seconds of the monotonic clock. */
typedef __u64 affinity;
#define AFFINITY_OF(id, used) ((__u64)(used) << 32 | (id))
#define AFFINITY_ID(a) ((__u32)(a))
#define AFFINITY_USED(a) ((__u32)((a) >> 32))

enum workload_flags {
	WORKLOAD_OPTED_OUT = 1 << 0, /* its connections are left alone */
};

/* What is known of a network namespace, by its cookie. */
struct workload {
	__u32 flags; /* enum workload_flags */
	__u32 pad;
	struct address addr4; /* for source ranges; zero: none is known */
	struct address addr6;
};
_Static_assert(sizeof(struct workload) == 40, "layout");

/* The one entry of the control map: what must be looked for. */
enum control_flags {
	CONTROL_OPT_OUT = 1 << 0, /* there are workloads that opted out */
};

/* The one entry of the meta map: says whose table this is. Written by user space, never read here. */
struct meta {
	__u32 abi;        /* layout version */
	__u32 owner;      /* META_OWNER */
	__u64 generation; /* highest set id ever given out */
};
_Static_assert(sizeof(struct meta) == 16, "layout");

#endif
