package uplinks

import "errors"

// errNoUplink says that no device leads off this node.
var errNoUplink = errors.New("no network device leads off this node, as far as addresses and routes tell")
