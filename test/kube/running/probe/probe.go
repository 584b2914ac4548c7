// Package probe connects through Services from inside a node or a pod and tells what came of each attempt. Command
// prober is the program that runs there; package running asks it over its standard input and reads its output.
package probe

// Request asks for attempts to reach a target. They go on beside those of other requests.
type Request struct {
	ID     int    `json:"id"`
	Proto  Proto  `json:"proto,omitempty"`
	Target string `json:"target,omitempty"` // address and port
	// Count is how many attempts to make; 0: until Stop.
	Count int `json:"count,omitempty"`
	// Every is the time from the begin of one attempt to that of the next, in milliseconds.
	Every int `json:"every,omitempty"`
	// Timeout bounds an attempt, in milliseconds; 0: five seconds.
	Timeout int `json:"timeout,omitempty"`
	// Source is the port that UDP sockets are bound to; 0: any.
	Source uint16 `json:"source,omitempty"`
	// Stop ends the request that has this ID.
	Stop bool `json:"stop,omitempty"`
}

// Proto is how to reach a target.
type Proto string

// The protocols. Kept is one TCP connection for all attempts, each of which sends a line and gets it back; it is made
// anew when it breaks, which is an attempt that failed. UDPKept is the same of a connected UDP socket; UDPLoose is one
// unconnected socket for all. Connect only connects, over TCP: for servers that are none of ours.
const (
	Connect  Proto = "connect"
	TCP      Proto = "tcp"
	UDP      Proto = "udp"
	UDPLoose Proto = "udp-loose"
	UDPKept  Proto = "udp-kept"
	Kept     Proto = "kept"
)

// Result is what came of an attempt.
type Result struct {
	ID int `json:"id"`
	// Begin and End are in nanoseconds of CLOCK_MONOTONIC.
	Begin int64 `json:"begin"`
	End   int64 `json:"end"`
	// Server is the address that the backend was reached at; Peer is the client's as the backend saw it.
	Server string `json:"server,omitempty"`
	Peer   string `json:"peer,omitempty"`
	// Error is the call that failed and the error's name: "connect ECONNREFUSED".
	Error string `json:"error,omitempty"`
	// Done says that there is no further result for this ID, and that this is none either.
	Done bool `json:"done,omitempty"`
}
