package apiserver

// State is what a probe found, in the order of preference.
type State int

const (
	// Unknown: not probed.
	Unknown State = iota
	// Live: it answers as asked for.
	Live
	// NotReady: it accepts connections, but does not answer as an API server
	// that is ready (5xx, no answer in time, connection closed).
	NotReady
	// Dead: nothing answers there, or what answers is not our API server.
	Dead
)

func (s State) String() string {
	return [...]string{"unknown", "live", "not ready", "dead"}[s]
}

// MarshalText gives the words of String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Kind says in one word why an endpoint is not live.
type Kind string

// The kinds of failure.
const (
	KindNone        Kind = ""
	KindRefused     Kind = "refused"     // a host answers, nobody listens
	KindRandomness  Kind = "randomness"  // this machine has no random numbers for TLS yet
	KindTimeout     Kind = "timeout"     // silence
	KindUnreachable Kind = "unreachable" // no route, or a router said so
	KindUnresolved  Kind = "unresolved"  // a name without an address
	KindTLS         Kind = "tls"         // not TLS, or another cluster's certificate
	KindExpired     Kind = "expired"     // our cluster's certificate, not valid at this node's time
	KindHTTP        Kind = "http"        // an answer other than ready
	KindClosed      Kind = "closed"      // accepted, then closed or reset
	KindOther       Kind = "other"
)
