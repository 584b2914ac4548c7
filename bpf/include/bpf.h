/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The part of the kernel's BPF interface that the programs use: types, the
 * socket address context, helpers and the map definition macros. Self
 * contained, so that an object depends on the compiler and on nothing else of
 * the machine that builds it.
 *
 * Numbers and layouts are kernel UAPI (include/uapi/linux/bpf.h) and cannot
 * change; comments name the kernel that brought each helper to programs of
 * type cgroup_sock_addr.
 */
#ifndef FIRSTHOP_INCLUDE_BPF_H
#define FIRSTHOP_INCLUDE_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef __u16 __be16; /* network byte order */
typedef __u32 __be32; /* network byte order */
typedef _Bool bool;

#define true 1
#define false 0

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htonl(x) __builtin_bswap32(x)
#define bpf_htons(x) __builtin_bswap16(x)
#else
#define bpf_htons(x) (x)
#define bpf_htonl(x) (x)
#endif

/* enum bpf_map_type */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_QUEUE 22
#define BPF_MAP_TYPE_SK_STORAGE 24

/* map flags */
#define BPF_F_NO_PREALLOC 1

/* flags of bpf_map_update_elem */
#define BPF_ANY 0

/* flags of bpf_sk_storage_get */
#define BPF_SK_STORAGE_GET_F_CREATE 1

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262

#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/* The context of the bind, connect, sendmsg, recvmsg and getpeername hooks. */
struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4;    /* 1, 2, 4 byte read; 4 byte write */
	__be32 user_ip6[4]; /* 1, 2, 4, 8 byte read; 4, 8 byte write (8: 5.3) */
	__u32 user_port;    /* network byte order in the low 16 bits; 4 byte write */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__be32 msg_src_ip4;
	__be32 msg_src_ip6[4];
	__u64 sk; /* struct bpf_sock *, 5.3; not in all kernels of the floor: see substitute.go */
};

/* The socket of a context, as far as the programs read it. Fields are read as whole words. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__be32 src_ip4;
	__be32 src_ip6[4];
	__u32 src_port; /* host byte order */
	__u32 dst_port; /* not read: its size differs from kernel to kernel */
	__be32 dst_ip4;
	__be32 dst_ip6[4];
};

struct bpf_spin_lock {
	__u32 val;
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;                                   /* 4.19 */
static long (*const bpf_map_push_elem)(void *map, const void *value, __u64 flags) = (void *)87;        /* 4.20 */
static long (*const bpf_spin_lock)(struct bpf_spin_lock *lock) = (void *)93;                           /* 5.1 */
static long (*const bpf_spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;                         /* 5.1 */
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107; /* 5.3 */

/*
 * Newer than the floor. The loader replaces these calls with "r0 = 0" on a
 * kernel that lacks the helper (bpf/substitute.go), so that one object loads
 * everywhere: a constant that guards the call would not do, as kernels before
 * 5.5 verify dead branches too.
 */
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)122; /* 5.7; else 0 */
static int (*const bpf_set_retval)(int retval) = (void *)187;        /* 5.18, in these programs 6.1; else no effect */

#endif
