// Package wire proves the packet path on the running kernel: what clients outside the cluster see of Services, with real
// sockets, real netfilter and real devices, in network namespaces of test/lab.
//
// A [bench] is one node with its programs attached, and everything around it:
//
//	client --- router === node --- pod "routed" (a veth, a /32 route)
//	           |  ||| |       \--- pod "bridged" (behind the bridge cni0)
//	           |  ||| \= eth1 (a second uplink, another subnet)
//	           |  ||\= peer, a node without firsthop, with pods: "remote" by a route over eth0,
//	           |  |          "overlay" by a VXLAN device, "second" by a route over eth1
//	           |  \= neighbour, a client on the segment of the uplink
//
// === is a bridge in the router's namespace. Each backend is a Service of its own: see [kind].
//
// Nothing is asserted by a clock. Whatever arrives at a client, and whatever the node sends, is captured, and has to be
// from the right address with a right checksum: see [sniffer].
package wire
