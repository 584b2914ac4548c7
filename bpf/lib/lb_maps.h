/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The map set "lb": Services, from frontend to backend.
 *
 * This holds for all *_maps.h: sizes are defaults, user space may give others
 * when it creates a map. The Go twins of keys and values are in bpf/layout.go,
 * the table of all maps in bpf/maps.go; bpf/layout_test.go compares both
 * with the object's BTF. A change of a key or value is a new version of its
 * set.
 */
#ifndef FIRSTHOP_LIB_LB_MAPS_H
#define FIRSTHOP_LIB_LB_MAPS_H

#include "address.h"

/*
 * A frontend: what a client connects to. A node port on the loopback addresses
 * has 127.0.0.0 or ::127.0.0.0 here, once for all of them. With port and proto zero the entry
 * stands for the address as a whole and marks it as a VIP, whose other ports
 * are refused.
 *
 * Node ports at the addresses of other nodes are not an entry for each node and
 * port, but two kinds of entries with nodes = 1: each address of a node, with
 * port and proto zero and FRONTEND_NODE, and each node port, with the
 * unspecified address of its family (::ffff:0.0.0.0 or ::). Programs of a former
 * version never look these keys up, and pass such connections on; at the key of
 * a VIP they would take the mark of a node for a service without a backend.
 *
 * For clients outside, an address has a mark of its own, with proto zero and
 * port FRONTEND_MARK_PORT: FRONTEND_VIP | FRONTEND_EXTERNAL, all ports that are
 * not served to them are refused. Load balancer IPs have this mark and not the
 * other: for clients inside their other ports are left alone. External IPs have
 * neither. Connect time never looks this key up.
 */
struct frontend_key {
	struct address addr;
	__be16 port; /* network byte order */
	__u8 proto;  /* IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP; 0: the address itself */
	__u8 nodes;  /* 1: of other nodes, see above; 0: of anything else */
};
_Static_assert(sizeof(struct frontend_key) == 20, "layout");

/* What follows the address, as programs write it: see half(). */
#define FRONTEND_KEY(port, proto, nodes) ((port) | (__u64)(proto) << 16 | (__u64)(nodes) << 24)

/* See frontend_key: FRONTEND_KEY(FRONTEND_MARK_PORT, 0, 0). The same in both byte orders. */
#define FRONTEND_MARK_PORT 0xffff

/* Flags of a frontend. */
enum frontend_flags {
	FRONTEND_VIP = 1 << 0,          /* marks an address: no service behind it, refuse */
	FRONTEND_LOCAL_POLICY = 1 << 1, /* to backends on this node: use the service's state for the Local policy */
	FRONTEND_STICKY = 1 << 2,       /* unconnected UDP sockets keep their backend */
	FRONTEND_SOURCE_RANGE = 1 << 3, /* for clients of the service's source ranges only */
	FRONTEND_NODE = 1 << 4,         /* marks an address of another node: no service behind it */
	/* For clients outside the cluster, by the packet path; connect time ignores these. */
	FRONTEND_EXTERNAL = 1 << 5,       /* they may use it; with FRONTEND_VIP: their mark, see frontend_key */
	FRONTEND_EXTERNAL_LOCAL = 1 << 6, /* they go by the service's state for the Local policy */
	FRONTEND_EXTERNAL_RANGE = 1 << 7, /* those of the service's source ranges only */
};

/* Changed by one 8-byte store, and read by one load: read_frontend() in lb.h. */
struct frontend {
	__u32 index; /* of the service, host byte order; 0: none */
	__u32 flags; /* enum frontend_flags */
};
_Static_assert(sizeof(struct frontend) == 8, "layout");

/* What clients connect to -> service index. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} fh_frontend SEC(".maps");

/*
 * The state of a service: the id of its present backend set in the low 32 bits
 * and the number of its slots in the high 32 bits, in one aligned 8-byte value,
 * so that a writer changes both by one store and a reader never sees half of
 * each. Zero: no backend.
 */
typedef __u64 service_state;
#define STATE_SET(s) ((__u32)(s))
#define STATE_COUNT(s) ((__u32)((s) >> 32))

/* The high bits of a set's id say what it is like. */
#define SET_DROP 0x40000000u     /* empty; connections are dropped, not refused */
#define SET_AFFINITY 0x80000000u /* clients keep their backend; has member entries and SLOT_AFFINITY */

/* 2*index, and 2*index+1 for frontends with the Local policy -> state. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, service_state);
} fh_service SEC(".maps");

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

/* The entry of a set with SET_AFFINITY whose id is for how many seconds after its last connection a client keeps its backend. */
#define SLOT_AFFINITY 0x7fffffffu

/* Flags of a backend: hints, which init and former versions do not set. */
enum backend_flags {
	BACKEND_LOCAL = 1 << 0, /* on this node; without it: elsewhere, or unknown */
};

struct backend {
	struct address addr;
	__be16 port; /* network byte order */
	__u16 flags; /* enum backend_flags */
	__u32 id;    /* BACKEND_MEMBER | 31 bits, unique in its set, kept from set to set */
};
_Static_assert(sizeof(struct backend) == 24, "layout");

/* Backend set and slot -> address. User space writes, programs read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct backend_key);
	__type(value, struct backend);
} fh_backend SEC(".maps");

/* By service index; all CPUs add to one. Index 0 counts VIPs' unserved ports and unallocated addresses. */
struct counters {
	__u64 translated; /* connects, and datagrams of unconnected sockets, sent to a backend */
	__u64 refused;    /* no backend, an unserved port or address */
};
_Static_assert(sizeof(struct counters) == 16, "layout");

/* Service index -> what it did. Programs write, user space reads. Not per CPU: docs/decisions/0003. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct counters);
} fh_counter SEC(".maps");

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

/* Client and service -> the backend that it keeps. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct affinity_key);
	__type(value, affinity);
} fh_affinity SEC(".maps");

#endif
