/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What user space decides before it loads the programs of a kind of uplinks. */
#ifndef FIRSTHOP_LIB_UPLINK_CONFIG_H
#define FIRSTHOP_LIB_UPLINK_CONFIG_H

#include "../include/bpf.h"

#define ETH_HLEN 14

struct uplink_config {
	__u64 build;      /* identifies object and settings: are the attached programs these? */
	__u32 header_len; /* of the link's header: ETH_HLEN, or 0 for devices without one */
	__u32 pad;
};
_Static_assert(sizeof(struct uplink_config) == 16, "layout");

const volatile struct uplink_config settings;

/* Where the network header is. Masked for verifiers below 5.5, which do not know constants: 0 or 14 in any case. */
static __always_inline __u32 network_offset(void)
{
	return settings.header_len & 0xe;
}

#endif
