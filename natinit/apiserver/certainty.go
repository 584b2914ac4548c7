package apiserver

import "fmt"

// Certainty is how well an address is known, the weakest first. A weaker
// source never replaces what a stronger one has saved.
type Certainty int

const (
	// Unsure: nothing tells, as in files of versions that did not note it.
	Unsure Certainty = iota
	// Configured: read from the configuration of this node or its cluster.
	Configured
	// Said: named by the API, whose certificate this node's CA has signed.
	Said
	// Given: given by the operator.
	Given
)

var certaintyWords = [...]string{"", "configured", "said", "given"}

func (c Certainty) String() string { return certaintyWords[c] }

// MarshalText gives the words of String.
func (c Certainty) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads the words of String.
func (c *Certainty) UnmarshalText(b []byte) error {
	for i, w := range certaintyWords {
		if w == string(b) {
			*c = Certainty(i)
			return nil
		}
	}
	return fmt.Errorf("unknown certainty %q", clip(string(b)))
}

// Certainty is that of what a source reads, unless it is a product's default.
func (s Source) Certainty() Certainty {
	switch s {
	case SourceFlags, SourceEnvironment:
		return Given
	case SourceAPI:
		return Said
	}
	return Configured
}
