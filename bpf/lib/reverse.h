/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The way back: which frontend did a socket ask for, when the kernel says that
 * it talks to a backend.
 */
#ifndef FIRSTHOP_LIB_REVERSE_H
#define FIRSTHOP_LIB_REVERSE_H

#include "config.h"
#include "maps.h"

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline struct peer *peer_slot(__u64 cookie)
{
	__u32 at = (__u32)cookie & settings.peer_mask;

	return bpf_map_lookup_elem(&fh_peer_v1, &at);
}

/*
 * Whether a TCP socket is not to be translated: user space has put an entry into
 * its slot that leads nowhere (bpf/bypass.go). Read without the lock: only a
 * program that connects this very socket writes its cookie, too.
 */
static __always_inline bool bypasses(__u64 cookie)
{
	struct peer *p = peer_slot(cookie);

	return p && p->cookie == cookie && !p->backend_port;
}

/* Remembers the frontend of a TCP socket. */
static __always_inline void remember_peer(__u64 cookie, const struct frontend_key *fe, const struct backend *be)
{
	struct peer *p = peer_slot(cookie);
	struct address to = be->addr;
	__be16 port = be->port;

	if (!p)
		return;
	bpf_spin_lock(&p->lock);
	p->cookie = cookie;
	p->frontend = fe->addr;
	p->frontend_port = fe->port;
	p->backend = to;
	p->backend_port = port;
	bpf_spin_unlock(&p->lock);
}

/* Puts the frontend of a TCP socket in place of addr and port, if they are the backend that it was given. */
static __always_inline bool recall_peer(__u64 cookie, struct address *addr, __be16 *port)
{
	struct peer *p = peer_slot(cookie);
	struct address frontend, backend;
	__be16 frontend_port, backend_port;
	__u64 owner;

	if (!p)
		return false;
	bpf_spin_lock(&p->lock);
	owner = p->cookie;
	frontend = p->frontend;
	frontend_port = p->frontend_port;
	backend = p->backend;
	backend_port = p->backend_port;
	bpf_spin_unlock(&p->lock);
	if (owner != cookie || backend_port != *port || !same_address(&backend, addr))
		return false;
	*addr = frontend;
	*port = frontend_port;
	return true;
}

/* Remembers the frontend of a UDP socket. Writes only what is new: a lookup keeps an LRU entry young. */
static __always_inline void remember_reverse(__u64 cookie, const struct frontend_key *fe, __u32 index,
                                             const struct backend *be)
{
	struct reverse_key key = {.cookie = cookie, .backend = be->addr, .port = be->port};
	struct reverse value = {.frontend = fe->addr, .port = fe->port, .index = index};
	struct reverse *old = bpf_map_lookup_elem(&fh_reverse_v1, &key);

	if (old && old->port == value.port && old->index == index && same_address(&old->frontend, &value.frontend))
		return;
	bpf_map_update_elem(&fh_reverse_v1, &key, &value, BPF_ANY);
}

/* Puts the frontend of a UDP socket in place of addr and port, if it has one for them. */
static __always_inline bool recall_reverse(__u64 cookie, struct address *addr, __be16 *port)
{
	struct reverse_key key = {.cookie = cookie, .backend = *addr, .port = *port};
	struct reverse *r = bpf_map_lookup_elem(&fh_reverse_v1, &key);

	if (!r)
		return false;
	*addr = r->frontend;
	*port = r->port;
	return true;
}

#endif
