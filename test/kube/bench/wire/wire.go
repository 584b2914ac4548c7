// Package wire is what the benchmarks and their connector say to each other, as JSON: a request, then its reply.
package wire

import "time"

// What a connector does.
const (
	// Burst connects to the targets in turn For a time.
	Burst = "burst"
	// Await connects to the first target until it answers, or, if Greeted, until a new backend does. A reply that is
	// Started says that the first connect did not, if so.
	Await = "await"
	// Sweep connects to each target once.
	Sweep = "sweep"
)

// Request asks a connector to do something.
type Request struct {
	Do      string
	Source  string   `json:",omitempty"` // the address to connect from; "" for any
	Targets []string // address:port, IPv4
	For     time.Duration
	Greeted bool
}

// Reply tells what came of it.
type Reply struct {
	Started  bool           `json:",omitempty"`
	Connects int            // that succeeded, but for the one that was waited for
	Failures map[string]int // that did not, by the error's name
	Elapsed  time.Duration
	Nanos    []int32       `json:",omitempty"` // Burst: what each connect took
	At       time.Duration // CLOCK_MONOTONIC: Await: of the connect that was waited for, 0 for none; Sweep: of its end
	Missing  []int         `json:",omitempty"` // Sweep: numbers of the targets that did not answer
}
