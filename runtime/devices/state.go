package devices

import "net/netip"

// State is what [Choose] judges. Its slices are only read.
type State struct {
	Links  []Link  // in the kernel's order: it prefers the addresses of earlier ones
	Addrs  []Addr  // in the kernel's order: it prefers earlier ones
	Routes []Route // in any order
	// Tables are the routing tables that count, the most important one first. Routes of others are passed over.
	// nil: main and default.
	Tables []uint32
	Peers  Peers
	Names  Names
}

// Peers is what the cluster says of its nodes. Addresses that this node has itself don't count as another node's.
type Peers struct {
	Nodes     []netip.Addr   // the other nodes' addresses
	Pods      []netip.Prefix // the ranges of the other nodes' pods
	LocalPods []netip.Prefix // the ranges of this node's pods
}

// Names are the administrator's lists of device names, as patterns of [path.Match]. A malformed pattern matches nothing
// (see [Names.Validate]). Exclude wins.
type Names struct {
	Include []string // uplinks, whatever their addresses and routes
	Exclude []string // no uplinks
}

// Link is a network device.
type Link struct {
	Name   string
	Index  int
	Kind   string // as of `ip -d link`; empty: of a driver that has no kind, such as a physical one
	Type   uint16 // of its hardware: ARPHRD_*
	Flags  uint32 // IFF_*
	Master int    // the index of the bridge, bond, VRF … that it belongs to; 0: none
	Parent int    // the index of the device in this namespace on which it stands (vlan, macvlan, ipvlan); 0: none
	Table  uint32 // of a VRF
	// OuterHeader: the kernel hands the programs of this device packets that begin with a tunnel's outer header (GRE without a fixed remote address).
	OuterHeader bool
}

// Addr is an address of a device.
type Addr struct {
	Device int // index
	Local  netip.Addr
	Net    netip.Prefix // what is on the link: of the peer's address where there is one; not masked
	Scope  uint8        // RT_SCOPE_*
	Flags  uint32       // IFA_F_*
}

// Route is one next hop of a unicast route. A route with several next hops is several of these.
type Route struct {
	Destination netip.Prefix // masked; zero bits: a default route
	Table       uint32
	Metric      uint32 // less is better
	// Selective: the route is for some packets only (by TOS or source prefix). It says where a device leads, not which
	// address the node has there.
	Selective bool
	*Hop
}

// Hop is where a route leads. Routes share it.
type Hop struct {
	Device  int        // index
	Gateway netip.Addr // invalid: the destination is on the link
	Source  netip.Addr // RTA_PREFSRC; invalid: the kernel chooses
	Scope   uint8      // of the route, RT_SCOPE_*: the kernel takes no source address of a narrower one
}

// Uplink is a device that leads off the node.
type Uplink struct {
	Name  string
	Index int
	L3    bool   // packets have no link-layer header, else an Ethernet header of 14 bytes
	Why   string // what makes it one, for people: "default route"
	// Sources are the node's addresses toward destinations by this device: the first one that contains the destination is
	// right. IPv4 comes first; each family ends with the zero prefix, and is absent where the node has no address of it.
	// At most maxSources for both families.
	Sources []Source
	Omitted int // how many further sources there would be; a shorter prefix speaks for their destinations
}

// Source is the node's preferred address toward a prefix.
type Source struct {
	Destination netip.Prefix
	Addr        netip.Addr
}

// Left is a device that could be expected among the uplinks and is not.
type Left struct {
	Name, Reason string
}
