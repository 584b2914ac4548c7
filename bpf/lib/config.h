/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What user space decides before it loads the programs. */
#ifndef FIRSTHOP_LIB_CONFIG_H
#define FIRSTHOP_LIB_CONFIG_H

#include "../include/bpf.h"

enum config_flags {
	CONFIG_UDP = 1 << 0,        /* translate UDP too */
	CONFIG_HOST_SCOPE = 1 << 1, /* only sockets of the host's network namespace */
};

struct config {
	__u64 build;        /* identifies object and settings: are the attached programs these? */
	__u64 host_netns;   /* cookie of the host's network namespace, for CONFIG_HOST_SCOPE */
	__u32 flags;        /* enum config_flags */
	__u32 rev_nat_mask; /* entries of fh_sock_rev_nat minus one; entries are a power of two */

	__u32 outgrown_mask; /* the same of outgrown_tcp; 0: no map of sockets grows now (outgrown_maps.h) */
	__u32 pad;
};
_Static_assert(sizeof(struct config) == 32, "layout");

const volatile struct config settings;

#endif
