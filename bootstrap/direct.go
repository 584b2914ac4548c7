package bootstrap

import (
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// Direct is the way to API servers, past the programs of an instance. Where they
// can't be gone past, it is a plain one.
func Direct(d mounts.Dirs) *natinit.Direct {
	b, err := mounts.FindBPFFS(d.ForBPFFS())
	if err != nil || b.Err() != nil {
		return nil
	}
	direct, err := natinit.OpenDirect(bpf.PinsBelow(b.Path))
	if err != nil {
		return nil
	}
	return direct
}
