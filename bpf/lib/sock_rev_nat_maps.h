/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The way back of sockets: which frontend did they ask for. Part of the map set "sock". */
#ifndef FIRSTHOP_LIB_SOCK_REV_NAT_MAPS_H
#define FIRSTHOP_LIB_SOCK_REV_NAT_MAPS_H

#include "address.h"

/*
 * The way back of a TCP socket, for getpeername and for the proof: a direct
 * mapped cache, by the low bits of the socket cookie. Cookies are handed out
 * in sequence, so an entry lives until some 65,536 later sockets were
 * translated, much like in an LRU of that size and at a tenth of the price
 * (docs/decisions/0002). The lock keeps two sockets of one slot from mixing.
 * User space writes entries without frontend and backend: see bypasses() in
 * sock_rev_nat.h. Programs that know nothing of them overwrite them.
 */
struct sock_rev_nat {
	struct bpf_spin_lock lock;
	__be16 frontend_port; /* network byte order */
	__be16 backend_port;  /* network byte order */
	__u64 cookie;
	struct address frontend;
	struct address backend;
};
_Static_assert(sizeof(struct sock_rev_nat) == 48, "layout");

/* Low bits of a TCP socket's cookie -> what it asked for. Programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct sock_rev_nat);
} fh_sock_rev_nat SEC(".maps");

/* The way back of a UDP socket: one entry for each backend that it talks to. */
struct udp_rev_nat_key {
	__u64 cookie;
	struct address backend;
	__be16 port; /* network byte order */
	__u16 pad0;  /* always 0 */
	__u32 pad1;  /* always 0 */
};
_Static_assert(sizeof(struct udp_rev_nat_key) == 32, "layout");

struct udp_rev_nat {
	struct address frontend;
	__be16 port;  /* network byte order */
	__u16 writer; /* the low bits of settings.build of the program that wrote it: see udp_rev_nat_forget() */
	__u32 index;  /* of the service */
};
_Static_assert(sizeof(struct udp_rev_nat) == 24, "layout");

/*
 * UDP socket and backend -> what it asked for. Programs write and read; user
 * space removes what sockets left that were closed. No socket loses its entry
 * to others: where the map is full, new ones go to the next one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct udp_rev_nat_key);
	__type(value, struct udp_rev_nat);
} fh_udp_sock SEC(".maps");

/* The same, of what found no room there, and of programs of a former version, which have no other. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct udp_rev_nat_key);
	__type(value, struct udp_rev_nat);
} fh_udp_rev_nat SEC(".maps");

/*
 * A way back that was just written. User space reads what came since it read
 * the hashes instead of all of them.
 */
struct udp_way_back {
	struct udp_rev_nat_key key;
	struct udp_rev_nat value;
};
_Static_assert(sizeof(struct udp_way_back) == 56, "layout");

/* Programs add, user space takes away. Full: some are missing. All CPUs share a lock for it. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8192);
	__type(value, struct udp_way_back);
} fh_udp_log SEC(".maps");

#endif
