// Package devices finds the network devices of the host that lead off the node, its uplinks: they get the programs of
// the packet path. It also finds the address that the node has toward each destination by such a device, which is what
// masquerade uses, and the ports that masquerade may use.
//
// [Choose] is a pure function of links, addresses, routes and the other nodes' addresses ([State]). [Follower] reads
// these by netlink, again whenever the kernel reports a change, and tells what Choose says when that differs.
//
// The rules, in the order in which they are applied:
//
//  1. The loopback is never an uplink. The administrator's lists come next: excluded, then included names.
//  2. A port of a bridge, bond, team or Open vSwitch is none: its master is judged. A member of a VRF is judged by
//     itself, since packets pass its own hooks and not those of the VRF device.
//  3. A device that leads nowhere (dummy, ifb) is none, nor is a VRF device.
//  4. A device is an uplink if it has a default route, the best route to another node's address, or a route by a
//     gateway to another node's pods.
//  5. The kinds that workloads have (veth, netkit, tap, and bridges that only have such ports) need one of these; for
//     all but bridges any other route by a gateway does too. So a node that is a container itself finds its eth0, while
//     the host's end of a pod's veth and the gateway of its pods (cni0, docker0) are left alone.
//  6. Every other device is also an uplink if it has any route by a gateway, a route to other nodes' pods, or an address
//     that is neither link-local nor of the range of this node's own pods.
//  7. An uplink has an Ethernet header or none; devices with any other header are left out, with a reason.
//
// A device need not be up: it may have its programs before its first packet.
//
// A hundred thousand routes take some 70 ms of a processor to read (50 of them in the kernel), 20 ms to judge and 7 MB to
// keep; see [Follower.Run] for how often.
package devices
