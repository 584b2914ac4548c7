package uplinks

import "errors"

// errNotYet says that nothing was looked at.
var errNotYet = errors.New("the network devices, or the Services, are not all known yet")

// errNoUplink says that no device leads off this node.
var errNoUplink = errors.New("no network device leads off this node, as far as addresses and routes tell")
