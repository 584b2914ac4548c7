package admin

import (
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
)

// SocketName is the socket's file in the run directory.
const SocketName = instance.RuntimeSocketName

// Service is one port of a Service in one family.
type Service struct {
	Index     uint32   `json:"index"` // in the table; 0: it isn't there
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Port      string   `json:"port,omitempty"` // its name; empty where a Service has one only
	Proto     string   `json:"proto"`          // tcp, udp, sctp
	Family    string   `json:"family"`         // IPv4, IPv6
	Node      string   `json:"node,omitempty"` // at whose addresses alone it is served: a node port with externalTrafficPolicy Local
	Kinds     []string `json:"kinds"`          // of its frontends: cluster IP, node port …
	Out       string   `json:"out,omitempty"`  // why it isn't in the table, or isn't there as it should be
}

// String is "default/web:http", or "default/web:http at node b".
func (s Service) String() string {
	name := s.Namespace + "/" + s.Name
	if s.Port != "" {
		name += ":" + s.Port
	}
	if s.Node != "" {
		name += " at node " + s.Node
	}
	return name
}

// Status is how a runtime is.
type Status struct {
	PID        int              `json:"pid"`
	Version    string           `json:"version"`
	Node       string           `json:"node"`
	Since      time.Time        `json:"since"`
	Adopted    bool             `json:"adopted"`                 // all inputs were known, and the table was written
	Waiting    *time.Time       `json:"waiting_since,omitempty"` // something is to be written since then
	Dataplane  Dataplane        `json:"dataplane"`
	Table      Table            `json:"table"`
	Watches    map[string]Watch `json:"watches"` // by resource
	APIServers APIServers       `json:"api_servers"`
	Proof      Proof            `json:"proof"`
	NodeError  string           `json:"node_error,omitempty"` // why the Node object is not followed
	Sockets    Sockets          `json:"sockets"`
	PacketPath *PacketPath      `json:"packet_path,omitempty"` // absent: it is off
	Ports      []Port           `json:"ports,omitempty"`       // of /healthz and metrics
	Problems   []Problem        `json:"problems,omitempty"`    // of objects
}

// Port is one at which the runtime answers, or wants to.
type Port struct {
	For       string `json:"for"`
	Addr      string `json:"address"`
	Listening bool   `json:"listening"`
	Holder    string `json:"holder,omitempty"` // who has it instead, if that is known: "kube-proxy (pid 42)"
	Error     string `json:"error,omitempty"`  // why it doesn't listen
}

// Sockets are those whose backend went: what became of them since the start, and what keeps them from being handled.
type Sockets struct {
	Moved      uint64 `json:"moved"` // connected UDP sockets that were connected to their Service again
	EndedUDP   uint64 `json:"ended_udp"`
	EndedTCP   uint64 `json:"ended_tcp"`
	Left       int    `json:"left"`                 // now: could be neither moved nor ended
	Hung       int    `json:"hung"`                 // now: their application holds their lock
	Swept      uint64 `json:"swept"`                // entries of closed sockets that were removed
	MoveError  string `json:"move_error,omitempty"` // why they are ended, not moved
	Error      string `json:"error,omitempty"`      // of the last look
	SweepError string `json:"sweep_error,omitempty"`
}

// PacketPath is how clients outside of the cluster are served.
type PacketPath struct {
	Error   string            `json:"error,omitempty"` // why not, or not by all devices
	Uplinks []Uplink          `json:"uplinks,omitempty"`
	Left    []LeftDevice      `json:"left,omitempty"`             // devices that one could expect among the uplinks
	Ports   string            `json:"masquerade_ports,omitempty"` // for connections to endpoints on other nodes: "1024-29999"
	Counts  map[string]uint64 `json:"packets,omitempty"`          // what became of those that were not simply passed on
}

// Uplink is a device that leads off the node.
type Uplink struct {
	Device   string   `json:"device"`
	Index    int      `json:"index"`
	Why      string   `json:"why"`
	Attached bool     `json:"attached"`
	By       string   `json:"by,omitempty"`    // tcx, clsact
	Ahead    []string `json:"ahead,omitempty"` // programs of others that packets pass before ours
	Error    string   `json:"error,omitempty"`
}

// LeftDevice is one that is no uplink.
type LeftDevice struct {
	Device string `json:"device"`
	Reason string `json:"reason"`
}

// Dataplane is what the programs and the table depend on.
type Dataplane struct {
	AttachError string `json:"attach_error,omitempty"` // why programs are not attached now
	Fault       string `json:"fault,omitempty"`        // what is damaged and cannot be repaired
}

// Table is what the writer knows of the table.
type Table struct {
	Ports    int    `json:"ports"` // Service ports that are wanted
	Out      []Out  `json:"out,omitempty"`
	NodesErr string `json:"node_addresses_error,omitempty"` // why node ports are not served at the addresses of all other nodes
}

// Out is a Service port that is not in the table as it should be.
type Out struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
}

// Watch is how the watch of one resource is doing.
type Watch struct {
	LastError string     `json:"last_error,omitempty"` // since the last event
	Since     *time.Time `json:"since,omitempty"`      // of that error
}

// APIServers is what the monitor of API servers knows.
type APIServers struct {
	Live      bool        `json:"live"`      // some are ready
	Answering bool        `json:"answering"` // some answer, ready or not; otherwise the last known good ones are in use
	Since     time.Time   `json:"since,omitzero"`
	Endpoints []APIServer `json:"endpoints,omitempty"`
	SaveError string      `json:"save_error,omitempty"` // why the addresses could not be saved
}

// APIServer is one API server.
type APIServer struct {
	Endpoint string    `json:"endpoint"`
	Source   string    `json:"source,omitempty"` // who named it
	State    string    `json:"state"`
	Asked    time.Time `json:"asked,omitzero"`
	Millis   float64   `json:"ms,omitempty"` // its last answer took
	InUse    bool      `json:"in_use"`
	LastLive time.Time `json:"last_live,omitzero"`
	Reason   string    `json:"reason,omitempty"` // why it isn't live
}

// Proof is how the runtime's last real connection through the programs went.
type Proof struct {
	Proven time.Time `json:"proven,omitzero"` // when the last one succeeded
	Error  string    `json:"error,omitempty"` // of the last one
}

// Problem is something of an object that is ignored or wrong.
type Problem struct {
	Kind    string `json:"kind"`
	Object  string `json:"object"`
	Port    string `json:"port,omitempty"` // of a Service, where one port is meant and has a name
	Reason  string `json:"reason"`
	Message string `json:"message"`
}
