//go:build ignore

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The connect-time load balancer: programs of type cgroup_sock_addr that
 * replace a Service's address by a backend's when a socket connects or sends,
 * and put the Service's address back when the application asks who answered.
 * No packet is ever touched.
 *
 * Runs from Linux 5.3 and RHEL 8.2 (4.18.0-193): no loops, no calls between BPF
 * functions, no tail calls, no helper that is not named in include/bpf.h.
 */
#include "include/bpf.h"
#include "lib/config.h"
#include "lib/nat.h"
#include "lib/reverse.h"
#include "lib/workload.h"

/* The verdicts of a cgroup hook. */
#define PROCEED 1
#define REJECT 0

static __always_inline void read4(const struct bpf_sock_addr *ctx, struct address *addr)
{
	addr->word[0] = 0;
	addr->word[1] = 0;
	addr->word[2] = bpf_htonl(0xffff);
	addr->word[3] = ctx->user_ip4;
}

static __always_inline void read6(const struct bpf_sock_addr *ctx, struct address *addr)
{
	addr->word[0] = ctx->user_ip6[0];
	addr->word[1] = ctx->user_ip6[1];
	addr->word[2] = ctx->user_ip6[2];
	addr->word[3] = ctx->user_ip6[3];
}

/*
 * Read whole, also where two bytes would do: before 5.8 the verifier takes no
 * narrower load of it (kernel commit 7aebfa1b3885), and the compiler narrows
 * what it may.
 */
static __always_inline __be16 read_port(const struct bpf_sock_addr *ctx)
{
	return *(const volatile __u32 *)&ctx->user_port;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct address *addr, __be16 port)
{
	ctx->user_ip4 = addr->word[3];
	ctx->user_port = port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct address *addr, __be16 port)
{
	ctx->user_ip6[0] = addr->word[0];
	ctx->user_ip6[1] = addr->word[1];
	ctx->user_ip6[2] = addr->word[2];
	ctx->user_ip6[3] = addr->word[3];
	ctx->user_port = port;
}

/* The protocol as the table has it; 0: none of ours. */
static __always_inline __u8 protocol(const struct bpf_sock_addr *ctx)
{
	switch (ctx->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP: /* its subflows are TCP; a server without MPTCP answers as TCP */
		return IPPROTO_TCP;
	case IPPROTO_UDP:
		return settings.flags & CONFIG_UDP ? IPPROTO_UDP : 0;
	}
	return 0;
}

/* Whether a socket of this network namespace is served, at a frontend that it found. */
static __always_inline bool in_scope(__u64 netns, bool loopback)
{
	if ((settings.flags & CONFIG_HOST_SCOPE || loopback) && netns != settings.host_netns)
		return false;
	return !opted_out(netns);
}

static __always_inline int reject(__u32 index, int error)
{
	count_refused(index);
	bpf_set_retval(error);
	return REJECT;
}

/*
 * The application sees ECONNREFUSED, as it would of kube-proxy's RST; a
 * kernel without bpf_set_retval knows but EPERM (cilium/cilium#45184 on why that misleads).
 */
static __always_inline int refuse(__u32 index)
{
	return reject(index, -ECONNREFUSED);
}

/* Where kube-proxy drops the packet, a connect that can't wait for it: as if no route led there. */
static __always_inline int drop(__u32 index)
{
	return reject(index, -EHOSTUNREACH);
}

static __always_inline bool is_v4(const struct frontend_key *key)
{
	return key->addr.word[2] == bpf_htonl(0xffff);
}

/*
 * What connect and sendmsg of both families have in common. The frontend of
 * key, copied to *fe; false: return *verdict. *netns is that of the socket, 0 where the kernel
 * can't tell; *cookie is the socket's.
 */
static __always_inline bool admit(struct bpf_sock_addr *ctx, struct frontend_key *key, struct frontend *fe,
                                  __u64 *netns, __u64 *cookie, int *verdict)
{
	struct address asked = key->addr;
	bool tcp = key->proto == IPPROTO_TCP;
	bool loopback;
	bool found = find_frontend(key, &loopback, fe);

	*verdict = PROCEED;
	if (!found && (loopback || !unallocated(&asked)))
		return false;
	*cookie = bpf_get_socket_cookie(ctx);
	if (tcp && bypasses(*cookie))
		return false;
	*netns = bpf_get_netns_cookie(ctx);
	if (!in_scope(*netns, loopback))
		return false;
	if (!found || fe->flags & FRONTEND_VIP) {
		*verdict = refuse(0);
		return false;
	}
	if (fe->flags & FRONTEND_LIMITED && !let_in(fe->index, *netns, is_v4(key))) {
		*verdict = drop(fe->index);
		return false;
	}
	key->addr = asked;
	return true;
}

static __always_inline int without_backend(const struct frontend *fe)
{
	return has_backends_elsewhere(fe) ? drop(fe->index) : refuse(fe->index);
}

/*
 * What both families do on connect: key is what the application asked for,
 * *to becomes where it goes; NULL: it goes where it asked for.
 */
static __always_inline int forward_connect(struct bpf_sock_addr *ctx, struct frontend_key *key, struct backend **to)
{
	struct frontend fe;
	__u64 cookie, netns;
	int verdict;

	*to = 0;
	if (!admit(ctx, key, &fe, &netns, &cookie, &verdict))
		return verdict;
	*to = choose_backend(&fe, netns);
	if (!*to)
		return without_backend(&fe);
	if (key->proto == IPPROTO_UDP)
		remember_reverse(cookie, key, fe.index, *to);
	else
		remember_peer(cookie, key, *to);
	count_translated(fe.index);
	return PROCEED;
}

SEC("cgroup/connect4")
int fh_connect4(struct bpf_sock_addr *ctx)
{
	struct frontend_key key = {.port = read_port(ctx), .proto = protocol(ctx)};
	struct backend *to;
	int verdict;

	if (!key.proto)
		return PROCEED;
	read4(ctx, &key.addr);
	verdict = forward_connect(ctx, &key, &to);
	if (to)
		write4(ctx, &to->addr, to->port);
	return verdict;
}

SEC("cgroup/connect6")
int fh_connect6(struct bpf_sock_addr *ctx)
{
	struct frontend_key key = {.port = read_port(ctx), .proto = protocol(ctx)};
	struct backend *to;
	int verdict;

	if (!key.proto)
		return PROCEED;
	read6(ctx, &key.addr);
	verdict = forward_connect(ctx, &key, &to);
	if (to)
		write6(ctx, &to->addr, to->port);
	return verdict;
}

/* A backend for a datagram: a sticky frontend's is the one that this socket used before, while it is one. */
static __always_inline struct backend *datagram_backend(__u64 cookie, const struct frontend *fe, __u64 netns)
{
	struct flow_key key = {.cookie = cookie, .index = fe->index, .local = !!(fe->flags & FRONTEND_LOCAL)};
	bool sticky = fe->flags & FRONTEND_STICKY;
	struct flow *old = sticky ? bpf_map_lookup_elem(&fh_flow_v1, &key) : 0;
	struct flow new = {};
	struct backend *be;

	if (old) {
		be = member_backend(fe, old->id);
		if (be)
			return be;
	}
	be = choose_backend(fe, netns);
	if (be && sticky) {
		new.id = be->id;
		bpf_map_update_elem(&fh_flow_v1, &key, &new, BPF_ANY);
	}
	return be;
}

/* As forward_connect, for one datagram of an unconnected UDP socket. */
static __always_inline int forward_datagram(struct bpf_sock_addr *ctx, struct frontend_key *key, struct backend **to)
{
	struct frontend fe;
	__u64 cookie, netns;
	int verdict;

	*to = 0;
	if (!admit(ctx, key, &fe, &netns, &cookie, &verdict))
		return verdict;
	*to = datagram_backend(cookie, &fe, netns);
	if (!*to)
		return without_backend(&fe);
	remember_reverse(cookie, key, fe.index, *to);
	count_translated(fe.index);
	return PROCEED;
}

SEC("cgroup/sendmsg4")
int fh_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct frontend_key key = {.port = read_port(ctx), .proto = protocol(ctx)};
	struct backend *to;
	int verdict;

	if (key.proto != IPPROTO_UDP)
		return PROCEED;
	read4(ctx, &key.addr);
	verdict = forward_datagram(ctx, &key, &to);
	if (to)
		write4(ctx, &to->addr, to->port);
	return verdict;
}

SEC("cgroup/sendmsg6")
int fh_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct frontend_key key = {.port = read_port(ctx), .proto = protocol(ctx)};
	struct backend *to;
	int verdict;

	if (key.proto != IPPROTO_UDP)
		return PROCEED;
	read6(ctx, &key.addr);
	verdict = forward_datagram(ctx, &key, &to);
	if (to)
		write6(ctx, &to->addr, to->port);
	return verdict;
}

/* The hooks below may not refuse: the kernel takes no other verdict of them. */

SEC("cgroup/recvmsg4")
int fh_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct address addr;
	__be16 port = read_port(ctx);

	if (!(settings.flags & CONFIG_UDP))
		return PROCEED;
	read4(ctx, &addr);
	if (recall_reverse(bpf_get_socket_cookie(ctx), &addr, &port))
		write4(ctx, &addr, port);
	return PROCEED;
}

SEC("cgroup/recvmsg6")
int fh_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct address addr;
	__be16 port = read_port(ctx);

	if (!(settings.flags & CONFIG_UDP))
		return PROCEED;
	read6(ctx, &addr);
	if (recall_reverse(bpf_get_socket_cookie(ctx), &addr, &port))
		write6(ctx, &addr, port);
	return PROCEED;
}

static __always_inline bool recall(struct bpf_sock_addr *ctx, struct address *addr, __be16 *port)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (ctx->protocol == IPPROTO_UDP)
		return recall_reverse(cookie, addr, port);
	return recall_peer(cookie, addr, port);
}

SEC("cgroup/getpeername4")
int fh_getpeername4(struct bpf_sock_addr *ctx)
{
	struct address addr;
	__be16 port = read_port(ctx);

	read4(ctx, &addr);
	if (recall(ctx, &addr, &port))
		write4(ctx, &addr, port);
	return PROCEED;
}

SEC("cgroup/getpeername6")
int fh_getpeername6(struct bpf_sock_addr *ctx)
{
	struct address addr;
	__be16 port = read_port(ctx);

	read6(ctx, &addr);
	if (recall(ctx, &addr, &port))
		write6(ctx, &addr, port);
	return PROCEED;
}

char _license[] SEC("license") = "Dual BSD/GPL";
