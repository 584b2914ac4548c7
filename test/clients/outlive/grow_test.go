package outlive

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
)

// smallMaps has the maps of sockets begin with a size that a few hundred sockets fill.
func smallMaps(n *node) {
	n.Helper()
	maps, err := bpf.EnsureMaps(bpf.PinsBelow(n.BPFFS), bpf.Sizes{UDPSockets: 256, UDPSessions: 256, TCPSockets: bpf.MinTCPSockets})
	n.must(err)
	n.must(maps.Close())
}

// mapSizes are how many UDP sockets the programs' maps have room for: names, kept backends.
func (n *node) mapSizes() (sockets, sessions uint32) {
	n.Helper()
	maps, err := bpf.OpenMaps(bpf.PinsBelow(n.BPFFS), false)
	if err != nil { // they are being exchanged
		return 0, 0
	}
	defer maps.Close()
	return maps.Map(bpf.MapUDPSockRevNat).MaxEntries(), maps.Map(bpf.MapUDPSockAffinity).MaxEntries()
}

// The runtime's own sweeps find that living sockets fill the maps, and make these larger: while sockets come, and also while the
// runtime is killed again and again in the middle of that, each socket has the name that it asked for.
func TestSocketsKeepTheirNamesWhileMapsGrow(t *testing.T) {
	for name, kills := range map[string]int{"undisturbed": 0, "killed": 15} {
		t.Run(name, func(t *testing.T) {
			n := newNodeOf(t, firsthop, smallMaps)
			n.follow(func(program) bool { return false }, "old")
			if sockets, sessions := n.mapSizes(); sockets != 256 || sessions != 256 {
				t.Fatalf("the maps begin with %d and %d entries", sockets, sessions)
			}
			const batch, batches = 100, 20
			results := make(chan string, 2)
			for _, mode := range []clients.Mode{clients.UDPConnected, clients.UDPUnconnected} {
				c := clients.StartCaller(t, n.Lab, client)
				go func() {
					said := ""
					for range batches {
						e := c.Do(clients.Call{Do: clients.Hoard, Mode: mode, Addr: port(echoPort), Count: batch})
						if e.Error != "" {
							said = e.Error
							break
						}
						time.Sleep(50 * time.Millisecond) // no condition: growths are to find sockets that come
					}
					grown := within(func() bool {
						if said == "" {
							said = c.Do(clients.Call{Do: clients.Hoard, Mode: mode, Addr: port(echoPort)}).Error
						}
						sockets, sessions := n.mapSizes()
						return said != "" || sockets >= batch*batches && sessions >= batch*batches
					})
					if !grown {
						said = "the maps did not grow"
					}
					results <- said
				}()
			}
			for i := range kills {
				time.Sleep(time.Duration(i%8) * 25 * time.Millisecond) // no condition: a growth is to be met at any point
				n.end(unix.SIGKILL)
				n.start()
			}
			for range 2 {
				if said := <-results; said != "" {
					t.Error(said)
				}
			}
			n.explain()
		})
	}
}
