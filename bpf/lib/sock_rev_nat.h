/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The way back: which frontend did a socket ask for, when the kernel says that
 * it talks to a backend.
 */
#ifndef FIRSTHOP_LIB_SOCK_REV_NAT_H
#define FIRSTHOP_LIB_SOCK_REV_NAT_H

#include "config.h"
#include "lb_maps.h"
#include "lookup.h"
#include "outgrown_maps.h"
#include "sock_rev_nat_maps.h"
#include "sock_usage.h"

static __always_inline struct sock_rev_nat *rev_nat_slot(__u64 cookie)
{
	__u64 at = (__u32)cookie & settings.rev_nat_mask;

	return bpf_map_lookup_elem(&fh_sock_rev_nat, &at);
}

static __always_inline struct sock_rev_nat *outgrown_slot(__u64 cookie)
{
	__u64 at = (__u32)cookie & settings.outgrown_mask;

	return bpf_map_lookup_elem(&outgrown_tcp, &at);
}

/*
 * Whether a TCP socket is not to be translated: user space has put an entry into
 * its slot that leads nowhere (bpf/bypass.go). Read without the lock: only a
 * program that connects this very socket writes its cookie, too.
 */
static __always_inline bool bypasses(__u64 cookie)
{
	struct sock_rev_nat *r = rev_nat_slot(cookie);

	if (growing() && r && r->cookie != cookie)
		r = outgrown_slot(cookie);
	return r && r->cookie == cookie && !r->backend_port;
}

static __always_inline void tcp_rev_nat_update(const struct lookup *l, const struct backend *be)
{
	struct sock_rev_nat *r = rev_nat_slot(l->cookie);
	struct address to = be->addr;
	__be16 port = be->port;

	if (!r)
		return;
	bpf_spin_lock(&r->lock);
	r->cookie = l->cookie;
	r->frontend = l->addr;
	r->frontend_port = l->port;
	r->backend = to;
	r->backend_port = port;
	bpf_spin_unlock(&r->lock);
}

static __always_inline __u32 writer(void)
{
	return (__u16)settings.build;
}

/* A value of fh_udp_sock is as it would be written. */
static __always_inline bool same_udp_rev_nat(const struct udp_rev_nat *old, const __u64 *new)
{
	const __u64 *word = (const void *)old;

	return !((word[0] ^ new[0]) | (word[1] ^ new[1]) | (word[2] ^ new[2]));
}

/* Writes only what is new: a datagram costs a lookup, which also keeps an LRU entry young. */
static __always_inline void udp_rev_nat_update(const struct lookup *l, __u32 index, const struct backend *be)
{
	__u64 entry[] = {l->cookie,
	                 half(&be->addr, 0),
	                 half(&be->addr, 1),
	                 be->port,
	                 half(&l->addr, 0),
	                 half(&l->addr, 1),
	                 l->port | writer() << 16 | (__u64)index << 32};
	__u64 *key = entry, *value = entry + 4; /* struct udp_way_back */
	struct udp_rev_nat *old = bpf_map_lookup_elem(&fh_udp_sock, key);

	if (old && same_udp_rev_nat(old, value))
		return;
	if (!bpf_map_update_elem(&fh_udp_sock, key, value, BPF_ANY)) {
		if (!old)
			count_usage(SOCK_USAGE_REV_NAT, false);
		bpf_map_push_elem(&fh_udp_log, entry, BPF_ANY);
		return;
	}
	if (old) /* no memory: what it says is not true any more, and is found first */
		bpf_map_delete_elem(&fh_udp_sock, key);
	old = bpf_map_lookup_elem(&fh_udp_rev_nat, key);
	if (old && same_udp_rev_nat(old, value))
		return;
	if (!old)
		count_usage(SOCK_USAGE_REV_NAT, true);
	bpf_map_update_elem(&fh_udp_rev_nat, key, value, BPF_ANY);
	bpf_map_push_elem(&fh_udp_log, entry, BPF_ANY);
}

/* Notes that a socket which asked for *l gets a backend of the service at index. */
static __always_inline void rev_nat_update(const struct lookup *l, __u32 index, const struct backend *be)
{
	if (l->proto == IPPROTO_UDP)
		udp_rev_nat_update(l, index, be);
	else
		tcp_rev_nat_update(l, be);
}

/* Whether a UDP socket asked for some frontend when it came to a backend. */
static __always_inline bool udp_rev_nat_has(const struct lookup *l, const struct backend *be)
{
	__u64 key[] = {l->cookie, half(&be->addr, 0), half(&be->addr, 1), be->port};

	return bpf_map_lookup_elem(&fh_udp_sock, key) || (growing() && bpf_map_lookup_elem(&outgrown_udp, key)) ||
	       bpf_map_lookup_elem(&fh_udp_rev_nat, key);
}

/*
 * Forgets that a UDP socket asked for a frontend when it came to *l: it asks for that itself now. Not what another program
 * has noted: without links (Linux 5.8), two generations of programs are attached while they are exchanged. Then the
 * first one has replaced the frontend in this very call, and this one sees the backend.
 */
static __always_inline void udp_rev_nat_forget(const struct lookup *l)
{
	__u64 key[] = {l->cookie, half(&l->addr, 0), half(&l->addr, 1), l->port};
	struct udp_rev_nat *r = bpf_map_lookup_elem(&fh_udp_sock, key);

	if (r && r->writer == writer())
		bpf_map_delete_elem(&fh_udp_sock, key);
	r = growing() ? bpf_map_lookup_elem(&outgrown_udp, key) : 0;
	if (r && r->writer == writer())
		bpf_map_delete_elem(&outgrown_udp, key);
	r = bpf_map_lookup_elem(&fh_udp_rev_nat, key);
	if (r && r->writer == writer())
		bpf_map_delete_elem(&fh_udp_rev_nat, key);
}

static __always_inline bool slot_lookup(struct lookup *l, struct sock_rev_nat *r)
{
	struct address frontend, backend;
	__be16 frontend_port, backend_port;
	__u64 owner;

	if (!r)
		return false;
	bpf_spin_lock(&r->lock);
	owner = r->cookie;
	frontend = r->frontend;
	frontend_port = r->frontend_port;
	backend = r->backend;
	backend_port = r->backend_port;
	bpf_spin_unlock(&r->lock);
	if (owner != l->cookie || backend_port != l->port || !same_address(&backend, &l->addr))
		return false;
	l->addr = frontend;
	l->port = frontend_port;
	return true;
}

static __always_inline bool tcp_rev_nat_lookup(struct lookup *l)
{
	return slot_lookup(l, rev_nat_slot(l->cookie)) || (growing() && slot_lookup(l, outgrown_slot(l->cookie)));
}

static __always_inline bool udp_rev_nat_lookup(struct lookup *l)
{
	__u64 key[] = {l->cookie, half(&l->addr, 0), half(&l->addr, 1), l->port};
	struct udp_rev_nat *r = bpf_map_lookup_elem(&fh_udp_sock, key);

	if (!r && growing())
		r = bpf_map_lookup_elem(&outgrown_udp, key);
	if (!r)
		r = bpf_map_lookup_elem(&fh_udp_rev_nat, key);
	if (!r)
		return false;
	l->addr = r->frontend;
	l->port = r->port;
	return true;
}

/* Puts the frontend that a socket asked for in place of the backend that it talks to; false: it asked for that. */
static __always_inline bool rev_nat_lookup(struct lookup *l)
{
	return l->proto == IPPROTO_UDP ? udp_rev_nat_lookup(l) : tcp_rev_nat_lookup(l);
}

#endif
