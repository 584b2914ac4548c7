//go:build ignore

/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * All maps and no program: what user space creates maps from, whichever
 * programs use them. An object of programs has those maps alone that they use,
 * and is loaded with the ones created from here.
 */
#include "lib/conntrack_maps.h"
#include "lib/events_maps.h"
#include "lib/lb_maps.h"
#include "lib/masquerade_maps.h"
#include "lib/meta_maps.h"
#include "lib/node_ports_maps.h"
#include "lib/reject_maps.h"
#include "lib/sock_affinity_maps.h"
#include "lib/sock_rev_nat_maps.h"
#include "lib/sock_usage_maps.h"
#include "lib/source_range_maps.h"
#include "lib/workload_maps.h"
