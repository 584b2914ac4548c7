//go:build ignore

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Tells user space the cookie of a network namespace: programs can ask for it
 * from Linux 5.7 on (kernel commit f318903c0bf4), processes from 5.14 on
 * (SO_NETNS_COOKIE, kernel commit e8b9eab99232). In between a process binds a
 * socket of the namespace to an address that nobody has, and finds the cookie
 * in what this program has put beside that very socket.
 *
 * The hook runs before bind() looks at the address, so the namespace needs no
 * device that is up; and bind() fails, so that no port is taken. Any other
 * process that binds to that address would have failed as well.
 */
#include "include/bpf.h"

#define PROCEED 1
#define REJECT 0

/* Class E (RFC 1112, section 4), which no device can have: "\xf0fhc", port "fh". Twin of bpf/cookie.go. */
#define COOKIE_ADDR bpf_htonl(0xf0666863)
#define COOKIE_PORT bpf_htonl(0x66680000) /* user_port has its two bytes first */

/* Socket -> cookie of its network namespace; gone with the socket. The program writes, user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __s32);
	__type(value, __u64);
} fh_netns SEC(".maps");

SEC("cgroup/bind4")
int fh_cookie(struct bpf_sock_addr *ctx)
{
	__u64 cookie;

	if (ctx->user_ip4 != COOKIE_ADDR || ctx->user_port != COOKIE_PORT)
		return PROCEED;
	cookie = bpf_get_netns_cookie(ctx);
	bpf_sk_storage_get(&fh_netns, (void *)ctx->sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
	return REJECT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
