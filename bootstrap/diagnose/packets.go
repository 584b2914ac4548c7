package diagnose

import (
	"errors"
	"fmt"
	"os"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
)

// ErrNoPacketPath says that an instance has no packet path.
var ErrNoPacketPath = errors.New("the packet path is off here: `firsthop run --packet-path` serves clients outside of the cluster")

// OpenPackets opens the maps of an instance's packet path. The error matches ErrNoPacketPath if there are none. The caller closes them.
func OpenPackets(d mounts.Dirs, readOnly bool) (*bpf.PacketMaps, error) {
	b, err := mounts.FindBPFFS(d.ForBPFFS())
	if err != nil {
		return nil, err
	}
	if err := b.Err(); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoPacketPath, err)
	}
	packet, err := bpf.OpenPacketMaps(bpf.PinsBelow(b.Path), readOnly)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoPacketPath
	}
	return packet, err
}
