package units

import (
	"context"

	"github.com/firsthop/firsthop/natinit/instance"
)

// Report is what was done, or in a plan would be done.
type Report struct {
	Init    Init     `json:"init"`
	Actions []Action `json:"actions"` // in order; empty when all is as it should be

	// Survives says whether the Service IP works after a reboot with no help
	// from outside. Statement is the whole of it as a sentence: what
	// survives and by whose doing, and what does not.
	Survives  bool   `json:"survives"`
	Statement string `json:"statement"`

	// Unit is what the init system makes of the service, read back after an
	// install. Over says how it was asked: a socket, or "files".
	Unit *State `json:"unit,omitempty"`
	Over string `json:"over,omitempty"`

	Warnings []string `json:"warnings,omitempty"` // somebody should do something
	Notes    []string `json:"notes,omitempty"`    // what was found and left alone
}

// Changed reports whether anything was changed, or in a plan would be.
func (r Report) Changed() bool { return len(r.Actions) > 0 }

// Action is one change of the host.
type Action struct {
	Kind instance.Kind `json:"kind"`
	Path string        `json:"path"` // on the host, or the name of a unit
	Old  string        `json:"old,omitempty"`
	New  string        `json:"new,omitempty"`
	Done bool          `json:"done"`

	former string // for the record: the contents that are replaced or removed
	run    func(context.Context) error
}
