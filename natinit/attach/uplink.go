package attach

import (
	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Uplink are the programs of the packet path for one kind of devices. Its maps may be nil where there are none: then no program is
// ours.
type Uplink struct {
	bpf.Uplink
	Table  *bpf.Maps
	Packet *bpf.PacketMaps
	// Shared loads the programs; nil: each device gets programs of its own, which takes the verifier's time for each.
	Shared func() (map[string]*ebpf.Program, error)
}

// AllHooks implements Programs.
func (u Uplink) AllHooks() []bpf.Hook { return bpf.UplinkHooks() }

// Hooks implements Programs: the way back comes first.
func (u Uplink) Hooks() []bpf.Hook { return bpf.UplinkHooks() }

// Load implements Programs.
func (u Uplink) Load() (map[string]*ebpf.Program, error) {
	if u.Shared != nil {
		return u.Shared()
	}
	return u.Uplink.Load(u.Table, u.Packet)
}

// Inspect implements Programs.
func (u Uplink) Inspect(p *ebpf.Program) (Known, error) {
	l, current, err := u.Uplink.Inspect(p, u.Table, u.Packet)
	return Known{l.ID, l.Name, l.Ours, current}, err
}
