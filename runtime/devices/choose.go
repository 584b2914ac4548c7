package devices

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// nature is what a device may be judged by, beside its routes.
type nature int

const (
	ordinary    nature = iota // its address and any route make it an uplink
	workload                  // veth, netkit, tap: it needs a route off the node
	localBridge               // a bridge that only has such ports: likewise, and a gateway behind it is a workload
	nowhere                   // its packets go nowhere
)

// maxNesting bounds how deep devices stand on one another (the kernel allows 8 levels); what is read while it changes
// could have a loop.
const maxNesting = 8

// device is a link with all that is known about it.
type device struct {
	Link
	addrs  []Addr
	ports  []*device // devices whose master it is
	routes routeFacts
	six    []Addr // what candidates6 has found; nil: not asked yet
}

// routeFacts are what a device's routes say about where it leads.
type routeFacts struct {
	isDefault bool // a default route
	gateway   bool // a route by a gateway that is neither this node nor one of its pods
	node      bool // the best route to another node's address
	pods      bool // a route to another node's pods
	podsBy    bool // such a route by a gateway
}

// chooser is the state, indexed.
type chooser struct {
	State
	devices []*device // in the kernel's order
	byIndex map[int]*device
	own     map[netip.Addr]bool // the node's addresses
	rank    map[uint32]int      // of a routing table: less is more important
}

// Choose returns the uplinks, sorted by name, and the devices that could be expected among them, sorted likewise. It is
// pure. It costs some ten nanoseconds a route, more where routes by one device have different source addresses.
func Choose(s State) ([]Uplink, []Left) {
	c := newChooser(s)
	c.judgeRoutes()
	var uplinks []Uplink
	var left []Left
	for _, d := range c.devices {
		why, reason := c.judge(d)
		switch {
		case why != "":
			uplinks = append(uplinks, Uplink{Name: d.Name, Index: d.Index, L3: d.Type != unix.ARPHRD_ETHER, Why: why})
		case reason != "":
			left = append(left, Left{d.Name, reason})
		}
	}
	slices.SortFunc(uplinks, func(a, b Uplink) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(left, func(a, b Left) int { return cmp.Compare(a.Name, b.Name) })
	c.addSources(uplinks)
	return uplinks, left
}

func newChooser(s State) *chooser {
	c := &chooser{State: s, byIndex: make(map[int]*device, len(s.Links)), own: make(map[netip.Addr]bool, len(s.Addrs)), rank: map[uint32]int{}}
	if c.Tables == nil {
		c.Tables = []uint32{unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT}
	}
	for _, t := range c.Tables {
		if _, known := c.rank[t]; !known {
			c.rank[t] = len(c.rank)
		}
	}
	for _, l := range s.Links {
		d := &device{Link: l}
		c.devices, c.byIndex[l.Index] = append(c.devices, d), d
	}
	for _, a := range s.Addrs {
		c.own[a.Local] = true
		if d := c.byIndex[a.Device]; d != nil {
			d.addrs = append(d.addrs, a)
		}
	}
	for _, d := range c.devices {
		if m := c.byIndex[d.Master]; m != nil {
			m.ports = append(m.ports, d)
		}
	}
	return c
}

// judge returns why a device is an uplink, or the reason to report why it is none. Both are empty where nobody would
// expect it to be one.
func (c *chooser) judge(d *device) (why, reason string) {
	if d.Flags&unix.IFF_LOOPBACK != 0 {
		return "", ""
	}
	included := matches(c.Names.Include, d.Name)
	switch {
	case included:
		why = "included by the configuration"
	case c.isPort(d):
		reason = c.aboutPort(d)
	default:
		if why = c.leadsOff(d, 0); why == "" {
			reason = c.aboutLocal(d)
		}
	}
	if why == "" {
		return "", reason
	}
	if matches(c.Names.Exclude, d.Name) {
		return "", "excluded by the configuration"
	}
	if reason := d.strangeHeader(); reason != "" {
		return "", reason
	}
	return why, ""
}

// leadsOff returns why a device that is no port leads off the node, "" if it does not.
func (c *chooser) leadsOff(d *device, depth int) string {
	n := c.nature(d, depth)
	r := d.routes
	switch {
	case n == nowhere:
		return ""
	case r.isDefault:
		return "default route"
	case r.node:
		return "route to another node"
	case r.podsBy:
		return "route to another node's pods"
	case n == localBridge:
		return ""
	case r.gateway:
		return "route by a gateway"
	case n == workload:
		return ""
	case r.pods:
		return "route to another node's pods"
	case slices.ContainsFunc(d.addrs, c.isNodeAddr):
		return "address of the node"
	}
	return ""
}

// nature looks at the kind of a device, and at what it stands on or joins.
func (c *chooser) nature(d *device, depth int) nature {
	switch d.Kind {
	case "dummy", "ifb", "nlmon", "vrf":
		return nowhere
	case "veth", "netkit":
		return workload
	case "tun": // tap has an Ethernet header: it is a virtual machine's
		if d.Type == unix.ARPHRD_ETHER {
			return workload
		}
	case "bridge":
		if !slices.ContainsFunc(d.ports, func(p *device) bool { return depth < maxNesting && c.nature(p, depth+1) == ordinary }) {
			return localBridge
		}
	case "vlan", "macvlan", "ipvlan":
		if p := c.byIndex[d.Parent]; p != nil && depth < maxNesting && (c.isPort(p) || c.leadsOff(p, depth+1) == "") {
			return c.nature(p, depth+1)
		}
	}
	return ordinary
}

// isPort tells whether packets pass the hooks of a device's master instead of its own.
func (c *chooser) isPort(d *device) bool {
	m := c.byIndex[d.Master]
	return d.Master != 0 && (m == nil || m.Kind != "vrf")
}

// isNodeAddr tells whether others may know the node by an address.
func (c *chooser) isNodeAddr(a Addr) bool {
	return isGlobal(a.Local) && a.Flags&unix.IFA_F_DADFAILED == 0 && !contains(c.Peers.LocalPods, a.Local)
}

// isGlobal tells whether an address is unicast and more than one device or host can use it.
func isGlobal(a netip.Addr) bool { return a.IsGlobalUnicast() }

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// aboutPort is for ports that could be expected: those with an address, and hardware.
func (c *chooser) aboutPort(d *device) string {
	if d.Kind != "" && !slices.ContainsFunc(d.addrs, c.isNodeAddr) {
		return ""
	}
	if m := c.byIndex[d.Master]; m != nil {
		return fmt.Sprintf("port of %s %s", cmp.Or(m.Kind, "device"), m.Name)
	}
	return "port of another device"
}

// aboutLocal is for devices that have an address and lead nowhere. A pod's veth with an address of its own net's length
// is not worth a word.
func (c *chooser) aboutLocal(d *device) string {
	if !slices.ContainsFunc(d.addrs, func(a Addr) bool { return isGlobal(a.Local) }) {
		return ""
	}
	wide := slices.ContainsFunc(d.addrs, func(a Addr) bool { return isGlobal(a.Local) && !a.Net.IsSingleIP() })
	switch n := c.nature(d, 0); {
	case d.Kind == "vrf":
		return "a VRF: its members are judged"
	case n == nowhere:
		return fmt.Sprintf("packets of a device of kind %s go nowhere", d.Kind)
	case n == localBridge && d.Kind == "bridge":
		return "bridge of this node's workloads: no port of it, no default route and no route to another node leads off the node"
	case (n == workload || n == localBridge) && wide:
		return "device of a workload: no default route and no route by a gateway or to another node uses it"
	case n == ordinary && !slices.ContainsFunc(d.addrs, func(a Addr) bool { return contains(c.Peers.LocalPods, a.Local) }):
		return "another host has its address (duplicate address detection failed)"
	case n == ordinary:
		return "its addresses belong to the range of this node's pods, and no route by it leads to another node"
	}
	return ""
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { ok, err := path.Match(p, name); return ok && err == nil })
}

// Validate returns an error that names the first malformed pattern.
func (n Names) Validate() error {
	for _, p := range slices.Concat(n.Include, n.Exclude) {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("device pattern %q: %w", p, err)
		}
	}
	return nil
}
