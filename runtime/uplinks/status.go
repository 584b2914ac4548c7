package uplinks

import (
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/runtime/devices"
)

// Status is how the packet path is.
type Status struct {
	Devices []Device
	Left    []devices.Left // that one could expect among the uplinks
	Ports   devices.Ports  // for masquerade
	Counts  map[bpf.PacketCount]uint64
	Error   error // of the last look; nil: all is as it should be

	looked bool
}

// Device is an uplink.
type Device struct {
	Name     string
	Index    int
	L3       bool
	Why      string
	Attached bool
	By       attach.By
	Ahead    []string // of others, that packets pass before ours
	Error    error
}

// Served is why packets from outside are not served; nil: they are, by every uplink.
func (s Status) Served() error {
	switch {
	case !s.looked:
		return errNotYet
	case s.Error != nil:
		return s.Error
	case len(s.Devices) == 0:
		return errNoUplink
	}
	return nil
}

func (k *Keeper) setStatus(st Status) {
	k.state.Lock()
	defer k.state.Unlock()
	k.state.Status = st
}

// Status tells how the packet path was when it was last looked at, and what its programs have counted by now.
func (k *Keeper) Status() Status {
	k.state.Lock()
	st := k.state.Status
	k.state.Unlock()
	if packet := k.Packet(); packet != nil {
		if counts, err := packet.Counts(); err == nil {
			st.Counts = counts
		}
	}
	return st
}
