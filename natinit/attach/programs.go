package attach

import (
	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Programs are what is attached to the hooks of one target: those of one BPF object.
type Programs interface {
	// AllHooks are the hooks at which programs of any version or configuration may be, in the order of attaching.
	AllHooks() []bpf.Hook
	// Hooks are those of them that get a program now.
	Hooks() []bpf.Hook
	// Load loads the programs of Hooks, by the names of the hooks.
	Load() (map[string]*ebpf.Program, error)
	// Inspect tells what a program is.
	Inspect(*ebpf.Program) (Known, error)
}

// Known is what is known of a program.
type Known struct {
	ID      ebpf.ProgramID
	Name    string
	Ours    bool
	Current bool // what Load would load
}

// Balancer are the programs of the connect-time load balancer. Its table may be nil where there is none: then no
// program is ours.
type Balancer struct {
	bpf.Balancer
	Maps     *bpf.Maps
	Features bpf.Features
}

// AllHooks implements Programs.
func (b Balancer) AllHooks() []bpf.Hook { return bpf.Hooks() }

// Hooks implements Programs: the way back comes first.
func (b Balancer) Hooks() []bpf.Hook { return b.Balancer.Hooks(b.Features) }

// Load implements Programs.
func (b Balancer) Load() (map[string]*ebpf.Program, error) {
	return bpf.LoadPrograms(b.Maps, b.Balancer, b.Features)
}

// Inspect implements Programs.
func (b Balancer) Inspect(p *ebpf.Program) (Known, error) {
	l, err := bpf.Inspect(p, b.Maps)
	return Known{l.ID, l.Name, l.Ours, l.Ours && b.Current(l, b.Maps, b.Features)}, err
}
