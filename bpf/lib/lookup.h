/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What a program asks the maps, and what becomes of it. */
#ifndef FIRSTHOP_LIB_LOOKUP_H
#define FIRSTHOP_LIB_LOOKUP_H

#include "address.h"

/* A connection or a datagram: what it is for, and whose it is. */
struct lookup {
	struct address addr; /* either family, see is_v4() */
	__be16 port;         /* network byte order */
	__u32 proto;         /* IPPROTO_TCP, IPPROTO_UDP; 0: none that is served */
	bool loopback;       /* addr is a loopback address: its frontends are for the host's own namespace only */
	struct address src;  /* what the socket is bound to, by bind() or an earlier connect(); zero: nothing */
	__u64 cookie;        /* of the socket */
	__u64 netns;         /* cookie of its network namespace; 0: the kernel can't tell */
};

enum verdict {
	VERDICT_PASS,      /* not ours: leave it alone */
	VERDICT_TRANSLATE, /* it goes to a backend */
	VERDICT_REFUSE,    /* nothing serves it: as kube-proxy's RST */
	VERDICT_DROP,      /* as where kube-proxy drops the packet */
};

#endif
