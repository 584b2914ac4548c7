// Package standin holds servers that stand in for real ones in tests and in the demo: a Kubernetes API server, as far as
// a node that is starting up sees one, and TCP and UDP backends. Each says which one it is and whom it sees, so that a
// test can tell where a connection really went.
//
// They are stand-ins for reachability, not for Kubernetes: nothing is stored but what a test puts into Objects, and only
// the paths that a node needs are there. Tests of what the API server itself decides run a real one.
package standin

import "net"

// Network makes the listening sockets of a stand-in. lab.Lab and lab.Pod do so in their network namespaces.
type Network interface {
	Listen(network, addr string) (net.Listener, error)
	ListenPacket(network, addr string) (net.PacketConn, error)
}
