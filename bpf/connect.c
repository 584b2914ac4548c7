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
#include "lib/frontend.h"
#include "lib/nowhere.h"
#include "lib/sock_affinity.h"
#include "lib/sock_rev_nat.h"
#include "lib/workload.h"

/* What a cgroup hook returns. */
#define PROCEED 1
#define REJECT 0

static __always_inline void read_address(const struct bpf_sock_addr *ctx, bool v4, struct address *addr)
{
	addr->word[0] = v4 ? 0 : ctx->user_ip6[0];
	addr->word[1] = v4 ? 0 : ctx->user_ip6[1];
	addr->word[2] = v4 ? bpf_htonl(0xffff) : ctx->user_ip6[2];
	addr->word[3] = v4 ? ctx->user_ip4 : ctx->user_ip6[3];
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

static __always_inline void write_address(struct bpf_sock_addr *ctx, bool v4, const struct address *addr, __be16 port)
{
	if (v4) {
		ctx->user_ip4 = addr->word[3];
	} else {
		ctx->user_ip6[0] = addr->word[0];
		ctx->user_ip6[1] = addr->word[1];
		ctx->user_ip6[2] = addr->word[2];
		ctx->user_ip6[3] = addr->word[3];
	}
	ctx->user_port = port;
}

/*
 * The address that a connection or datagram will come from, as far as it is
 * decided: by bind(), by an earlier connect() of a UDP socket, or by what a
 * datagram itself asks for (IP_PKTINFO). *addr is zero before.
 */
static __always_inline void read_source(const struct bpf_sock_addr *ctx, bool v4, bool datagram, struct address *addr)
{
	const struct bpf_sock *sk = (const void *)ctx->sk;

	if (v4)
		addr->word[2] = bpf_htonl(0xffff);
	if (datagram && v4) {
		addr->word[3] = ctx->msg_src_ip4;
	} else if (datagram) {
		addr->word[0] = ctx->msg_src_ip6[0];
		addr->word[1] = ctx->msg_src_ip6[1];
		addr->word[2] = ctx->msg_src_ip6[2];
		addr->word[3] = ctx->msg_src_ip6[3];
	} else if (sk && v4) {
		addr->word[3] = sk->src_ip4;
	} else if (sk) {
		addr->word[0] = sk->src_ip6[0];
		addr->word[1] = sk->src_ip6[1];
		addr->word[2] = sk->src_ip6[2];
		addr->word[3] = sk->src_ip6[3];
	}
}

/* Whether a socket is bound to a device other than lo, which is 1 in each network namespace (LOOPBACK_IFINDEX). */
static __always_inline bool on_device(const struct bpf_sock_addr *ctx)
{
	const struct bpf_sock *sk = (const void *)ctx->sk;

	return sk && sk->bound_dev_if > 1;
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

/*
 * What connect and sendmsg of both families have in common: the frontend of *l, copied to *fe, or why there is none. v4
 * and datagram are constants, here and below.
 */
static __always_inline enum verdict admit(struct bpf_sock_addr *ctx, bool v4, bool datagram, struct lookup *l,
                                          struct frontend *fe)
{
	bool found = find_frontend(l, fe);

	if (!found && (l->loopback || !unallocated(&l->addr)))
		return VERDICT_PASS;
	l->cookie = bpf_get_socket_cookie(ctx);
	if (l->proto == IPPROTO_TCP && bypasses(l->cookie))
		return VERDICT_PASS;
	l->netns = bpf_get_netns_cookie(ctx);
	if (!in_scope(l->netns, l->loopback))
		return VERDICT_PASS;
	if (!found || fe->flags & FRONTEND_VIP)
		return VERDICT_REFUSE;
	read_source(ctx, v4, datagram, &l->src);
	if (fe->flags & FRONTEND_SOURCE_RANGE && !source_range_allows(fe->index, l))
		return VERDICT_DROP;
	return VERDICT_TRANSLATE;
}

/*
 * Whether a datagram goes to the address that its socket is connected to, or may do. Then it need not be one that names
 * its destination: for an IPv6 socket that is connected to a v4-mapped address, the kernel
 * asks the hook about all of them (udpv6_sendmsg calls udp_sendmsg with the peer's address).
 */
static __always_inline bool to_peer(const struct bpf_sock_addr *ctx, bool v4, const struct address *addr)
{
	const struct bpf_sock *sk = (const void *)ctx->sk;

	if (!sk)
		return true;
	if (v4)
		return sk->dst_ip4 == addr->word[3];
	return sk->dst_ip6[0] == addr->word[0] && sk->dst_ip6[1] == addr->word[1] && sk->dst_ip6[2] == addr->word[2] &&
	       sk->dst_ip6[3] == addr->word[3];
}

/* Leaves a connection or datagram alone. Replies to it come from the address that it asked for. */
static __always_inline int pass(struct bpf_sock_addr *ctx, bool v4, bool datagram, struct lookup *l)
{
	if (l->proto == IPPROTO_UDP && !(datagram && to_peer(ctx, v4, &l->addr))) {
		l->cookie = bpf_get_socket_cookie(ctx);
		udp_rev_nat_forget(l);
	}
	return PROCEED;
}

/* Where a UDP socket is led that asks for what nothing serves: see nowhere.h. */
static __always_inline void nowhere_of(const struct address *addr, struct backend *nowhere)
{
	nowhere->addr.word[0] = 0;
	nowhere->addr.word[1] = 0;
	nowhere->addr.word[2] = is_v4(addr) ? bpf_htonl(0xffff) : 0;
	nowhere->addr.word[3] = is_v4(addr) ? bpf_htonl(NOWHERE_IP4) : bpf_htonl(1);
	nowhere->port = bpf_htons(NOWHERE_PORT);
}

/*
 * Whether a socket with a loopback address of its own waits nowhere: it may have that address because it was led there,
 * and waits until the runtime moves it.
 */
static __always_inline bool waits_nowhere(const struct lookup *l)
{
	struct backend nowhere;

	nowhere_of(&l->addr, &nowhere);
	return l->proto == IPPROTO_UDP && udp_rev_nat_has(l, &nowhere);
}

/*
 * What becomes of a socket with a loopback address of its own, and a backend that it can't reach, as that is neither
 * loopback nor at the address of the socket's network namespace.
 * It is left alone: with IPv4, the kernel refuses such a source at once
 * (EINVAL, __mkroute_output), but where route_localnet is set kube-proxy may
 * serve it, at a loopback address that another process listens on. With IPv6, the kernel would send, and the
 * sender would wait for an answer that can't come.
 */
static __always_inline enum verdict from_loopback(const struct lookup *l)
{
	if (waits_nowhere(l) || (!is_v4(&l->addr) && !is_loopback(&l->addr)))
		return VERDICT_DROP;
	return VERDICT_PASS;
}

/* Chooses a backend for what admit() allows, copied to *to, or says why there is none. */
static __always_inline enum verdict choose(bool datagram, const struct lookup *l, const struct frontend *fe,
                                           struct backend *to)
{
	if (datagram)
		datagram_backend(l, fe, to);
	else
		choose_backend(fe, l->netns, to);
	if (!to->id)
		return has_backends_elsewhere(fe) ? VERDICT_DROP : VERDICT_REFUSE;
	if (unlikely(is_loopback(&l->src)) && !reached_from_loopback(l, &to->addr))
		return from_loopback(l);
	return VERDICT_TRANSLATE;
}

/*
 * Sends a connection, or a datagram of an unconnected UDP socket, to a backend.
 *
 * What nothing serves: the application sees ECONNREFUSED where kube-proxy answers with RST, and
 * EHOSTUNREACH where it drops the packet: a connect can't wait for that. A
 * kernel without bpf_set_retval knows but EPERM (cilium/cilium#45184 on why that misleads).
 *
 * UDP is led nowhere instead: under kube-proxy, connect() and sendto() succeed, and what is sent later arrives
 * once there is a backend. The runtime finds sockets that were connected by their way back, and moves
 * them. A datagram notes none, so as not to hide that of its socket's connect().
 * A socket that is bound to a device would send by that even to a loopback address, so it is refused.
 *
 * All ways to an end meet in one: the verifier, and with it the start, takes time for each copy of it.
 */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, bool v4, bool datagram)
{
	struct lookup l = {.port = read_port(ctx), .proto = protocol(ctx)};
	struct frontend fe;
	struct backend to = {};
	enum verdict verdict;

	if (datagram ? l.proto != IPPROTO_UDP : !l.proto)
		return PROCEED;
	read_address(ctx, v4, &l.addr);
	verdict = admit(ctx, v4, datagram, &l, &fe);
	if (verdict == VERDICT_TRANSLATE)
		verdict = choose(datagram, &l, &fe, &to);
	if (verdict == VERDICT_PASS)
		return pass(ctx, v4, datagram, &l);
	count(fe.index, verdict == VERDICT_TRANSLATE);
	if (verdict != VERDICT_TRANSLATE) {
		if (l.proto != IPPROTO_UDP || on_device(ctx)) {
			bpf_set_retval(verdict == VERDICT_DROP ? -EHOSTUNREACH : -ECONNREFUSED);
			return REJECT;
		}
		nowhere_of(&l.addr, &to);
	}
	if (verdict == VERDICT_TRANSLATE || !datagram)
		rev_nat_update(&l, fe.index, &to);
	write_address(ctx, v4, &to.addr, to.port);
	return PROCEED;
}

/* Puts a Service's address back. These hooks may not refuse: the kernel takes no other verdict of them. */
static __always_inline int to_frontend(struct bpf_sock_addr *ctx, bool v4, __u32 proto)
{
	struct lookup l = {.proto = proto};

	l.cookie = bpf_get_socket_cookie(ctx);
	read_address(ctx, v4, &l.addr);
	l.port = read_port(ctx);
	if (rev_nat_lookup(&l))
		write_address(ctx, v4, &l.addr, l.port);
	return PROCEED;
}

SEC("cgroup/connect4")
int fh_connect4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, false);
}

SEC("cgroup/connect6")
int fh_connect6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, false);
}

SEC("cgroup/sendmsg4")
int fh_sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, true);
}

SEC("cgroup/sendmsg6")
int fh_sendmsg6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, true);
}

SEC("cgroup/recvmsg4")
int fh_recvmsg4(struct bpf_sock_addr *ctx)
{
	return settings.flags & CONFIG_UDP ? to_frontend(ctx, true, IPPROTO_UDP) : PROCEED;
}

SEC("cgroup/recvmsg6")
int fh_recvmsg6(struct bpf_sock_addr *ctx)
{
	return settings.flags & CONFIG_UDP ? to_frontend(ctx, false, IPPROTO_UDP) : PROCEED;
}

SEC("cgroup/getpeername4")
int fh_getpeername4(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, true, ctx->protocol);
}

SEC("cgroup/getpeername6")
int fh_getpeername6(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, false, ctx->protocol);
}

char _license[] SEC("license") = "Dual BSD/GPL";
