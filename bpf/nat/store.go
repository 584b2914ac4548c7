package nat

import "github.com/firsthop/firsthop/bpf"

// Store is a table that can be read and written: the kernel's maps, or a Fake.
// Slices that belong together have the same length. An error may leave a part
// written; Apply takes it back.
type Store interface {
	// Read copies the whole table.
	Read() (*State, error)

	// PutGeneration notes the highest set id given out.
	PutGeneration(uint64) error

	PutBackends([]bpf.BackendKey, []bpf.Backend) error
	// DeleteBackends and DeleteFrontends don't mind keys that are not there.
	DeleteBackends([]bpf.BackendKey) error
	// PutFrontends is for frontends that are not there.
	PutFrontends([]bpf.FrontendKey, []bpf.Frontend) error
	// ChangeFrontends changes frontends that are there, each by one store: who
	// looks one up at any time finds it, as it was or as it is.
	ChangeFrontends([]bpf.FrontendKey, []bpf.Frontend) error
	DeleteFrontends([]bpf.FrontendKey) error

	PutSourceRanges([]bpf.SourceRangeKey) error
	// DeleteSourceRanges doesn't mind keys that are not there.
	DeleteSourceRanges([]bpf.SourceRangeKey) error

	// PutServiceStates changes states in order, each by one store; zero clears one.
	PutServiceStates(at []uint32, states []bpf.ServiceState) error

	// Synchronize returns when no program uses what it read before the call.
	Synchronize() error
}
