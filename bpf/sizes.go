package bpf

// The bounds of NodeSizes, and of maps of sockets that grow. A node that needs more than this has more sockets than
// the kernel's own defaults are for: /proc/sys/net/netfilter/nf_conntrack_max ends at 262,144.
const (
	MinUDPSockets = 1 << 16
	MaxUDPSockets = 1 << 20
	MinTCPSockets = 1 << 16
	MaxTCPSockets = 1 << 18
)

const (
	// perUDPSocket is for how many bytes of the node's memory there is an entry in each of the two hashes. An entry
	// takes 32 bytes of buckets at once, and some 230 more when it is used; a UDP socket itself takes about 2 KiB.
	perUDPSocket = 128 << 10
	// firstUDPSockets is the most that they have before they grow. The kernel prepares each bucket: 262,144 take 2 ms,
	// which init would spend before the first connection.
	firstUDPSockets = 1 << 18
	// perTCPSocket is the same of the array, which takes 48 bytes an entry at once.
	perTCPSocket = 256 << 10
	// udpSocketSize and tcpSocketSize are what an entry takes of memory at most.
	udpSocketSize = 256
	tcpSocketSize = 48
)

// NodeSizes gives the maps of sockets the sizes that are right for a node, where sizes does not give them. memory is the
// node's, in bytes. limit is that of the cgroup which the maps are charged to: since Linux 5.11 that of who creates them
// ("bpf: switch to memcg-based memory accounting"). Full maps are to take a quarter of it at most. 0: it has none.
func NodeSizes(sizes Sizes, memory, limit uint64) Sizes {
	udp, tcp := memory/perUDPSocket, memory/perTCPSocket
	if limit > 0 {
		udp, tcp = min(udp, limit/4/udpSocketSize), min(tcp, limit/4/tcpSocketSize)
	}
	give := func(to *uint32, n, least, most uint64) {
		if *to == 0 {
			*to = uint32(min(powerOfTwo(max(n, least)), most))
		}
	}
	give(&sizes.UDPSockets, udp, MinUDPSockets, firstUDPSockets)
	give(&sizes.UDPSessions, udp, MinUDPSockets, firstUDPSockets)
	give(&sizes.TCPSockets, tcp, MinTCPSockets, MaxTCPSockets)
	return sizes
}

// MostSockets gives the most entries that maps of UDP and of TCP sockets may grow to. They are charged to who makes them
// larger, and applications fill them: a tenant must not make that process run out of the memory that it is limited to.
// limit is that of NodeSizes.
func MostSockets(limit uint64) (udp, tcp uint32) {
	if limit == 0 {
		return MaxUDPSockets, MaxTCPSockets
	}
	most := func(size, least, most uint64) uint32 { return uint32(min(powerOfTwo(max(limit/4/size, least)), most)) }
	return most(udpSocketSize, MinUDPSockets, MaxUDPSockets), most(tcpSocketSize, MinTCPSockets, MaxTCPSockets)
}

// powerOfTwo is the largest one that is not above n, which is not 0.
func powerOfTwo(n uint64) uint64 {
	for n&(n-1) != 0 {
		n &= n - 1
	}
	return n
}
