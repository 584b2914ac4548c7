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
#define __noinline __attribute__((noinline))

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
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_QUEUE 22
#define BPF_MAP_TYPE_SK_STORAGE 24
#define BPF_MAP_TYPE_RINGBUF 27

/* map flags */
#define BPF_F_NO_PREALLOC 1

/* flags of bpf_map_update_elem */
#define BPF_ANY 0
#define BPF_NOEXIST 1

/* flags of bpf_sk_storage_get */
#define BPF_SK_STORAGE_GET_F_CREATE 1

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
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

/* The context of tc programs, as far as they read it. Fields are read as whole words. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type; /* PACKET_HOST: to this host, by its link address */
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol; /* an Ethernet type in network byte order; behind a VLAN tag that the device took off */
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data; /* pointers to the packet's linear part: loads of 4 bytes that the verifier makes pointers of */
	__u32 data_end;
};

#define PACKET_HOST 0

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

/* What tc programs return. UNSPEC lets the next program, or filter, decide; tcx calls it TCX_NEXT. */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

/* flags of bpf_l4_csum_replace: the low 4 bits are the size of what changes, 0 for a difference */
#define BPF_F_PSEUDO_HDR 0x10
#define BPF_F_MARK_MANGLED_0 0x20

/* flags of bpf_skb_store_bytes */
#define BPF_F_RECOMPUTE_CSUM 1

/* modes of bpf_skb_adjust_room: room between the link's header and the network's (5.2) */
#define BPF_ADJ_ROOM_MAC 1

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_skb_store_bytes)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_l3_csum_replace)(void *skb, __u32 at, __u64 from, __u64 to, __u64 size) = (void *)10;
static long (*const bpf_l4_csum_replace)(void *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 at, void *to, __u32 len) = (void *)26;
static long (*const bpf_csum_diff)(void *from, __u32 from_size, void *to, __u32 to_size, __u32 seed) = (void *)28;
static long (*const bpf_skb_change_tail)(void *skb, __u32 len, __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(void *skb, __u32 len) = (void *)39;
static long (*const bpf_csum_update)(void *skb, __u32 csum) = (void *)40;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;                                   /* 4.19 */
static long (*const bpf_skb_adjust_room)(void *skb, __s32 len, __u32 mode, __u64 flags) = (void *)50;  /* 4.13 */
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
static long (*const bpf_ringbuf_output)(void *map, void *value, __u64 size,
                                        __u64 flags) = (void *)130;  /* 5.8; else no effect */
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)122; /* 5.7; else 0 */
static int (*const bpf_set_retval)(int retval) = (void *)187;        /* 5.18, in these programs 6.1; else no effect */

#endif
