// Package sockets destroys connected sockets whose backend is gone.
//
// A connected UDP socket keeps the backend that it was given at connect: no
// packet comes back to tell it that the backend is gone, and nothing else
// makes it ask the Service again (projectcalico/calico#4509,
// cilium/cilium#48096). Destroyed by SOCK_DESTROY, it fails its application
// with ECONNABORTED, in a call that waits or in the next receive, and is as if
// it had never been connected: a send then says EDESTADDRREQ, a connect reaches
// a backend of today, from the same source port if it was bound to one.
// (udp_abort and tcp_abort, Linux 4.9 with CONFIG_INET_DIAG_DESTROY, kernel
// commits 5d77dca82839 and c1e64e298b8c.)
//
// # Which sockets
//
// Only those whose cookie the way back names together with the backend
// (fh_udp_rev_nat for UDP, fh_sock_rev_nat for TCP): sockets that went through a
// Service. One that connected to the backend's own address is left alone.
//
// An unconnected UDP socket needs none of this: its next datagram chooses again
// when its backend is no longer a member of the Service's set. Its entry in
// fh_udp_rev_nat stays, as those of destroyed sockets do: late answers of a
// backend that ends still find their way back by it, a cookie is never used
// again (include/linux/cookie.h), and the map forgets its oldest by itself.
//
// # What it costs
//
// First the way back is read, in batches; only if it names a backend that is
// gone are network namespaces entered, and only in those that have sockets of
// the protocol are these listed. Nothing says in which namespace a cookie
// lives, so it is all of them, until every cookie has been met. In processor
// time, on a small virtual machine: 2 ms for 16,384 UDP sockets to read, 11 ms for
// the 65,536 places of TCP, 2 ms to pass over 30 namespaces without sockets, 5 ms
// with two in each.
//
// # What it can't reach
//
// A socket that shares both addresses and ports with one that is to live: the
// kernel finds but one of them. Connections by MPTCP, whose subflows are sockets
// with cookies of their own. One that was led to the backend, then connected to
// the backend's own address, is taken for one that still is led.
package sockets
