package monitor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func rig(t *testing.T) (*bpf.PacketMaps, *ebpf.Program) {
	t.Helper()
	lab.NeedsLinux(t, 5, 8, "ring buffers")
	pins := bpf.PinsBelow(lab.New(t).BPFFS)
	table, err := bpf.EnsureMaps(pins, bpf.Sizes{Frontends: 64, Services: 32, Backends: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	packet, err := bpf.EnsurePacketMaps(pins, 1024)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packet.Close() })
	if err := table.Map(bpf.MapFrontend).Put(bpf.ExternalVIPKeyOf(netip.MustParseAddr("192.0.2.10")), bpf.Frontend{Flags: bpf.FrontendVIP | bpf.FrontendExternal}); err != nil {
		t.Fatal(err)
	}
	progs, err := bpf.Uplink{}.Load(table, packet)
	if err != nil {
		t.Fatal(err)
	}
	progs["to_uplink"].Close()
	t.Cleanup(func() { progs["from_uplink"].Close() })
	return packet, progs["from_uplink"]
}

// syn is a TCP connection of 203.0.113.2:40000 to 192.0.2.10:80, at the device of PROG_TEST_RUN.
var syn = append([]byte{
	0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0,
	0x45, 0, 0, 40, 0, 7, 0, 0, 60, 6, 0, 0, 203, 0, 113, 2, 192, 0, 2, 10,
	0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 2, 0, 0, 0, 0, 0,
}, make([]byte, 6)...)

func TestListenHearsWhatBecomesOfPackets(t *testing.T) {
	packet, prog := rig(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	heard := make(chan Event, 1)
	ended := make(chan error, 1)
	go func() { ended <- Listen(ctx, packet, func(e Event) { heard <- e }) }()
	lab.Await(t, "somebody listens", func() bool { until, err := readUntil(packet); return err == nil && until > now() })

	if err := Listen(ctx, packet, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("a second listener: %v", err)
	}
	if _, _, err := prog.Test(syn); err != nil {
		t.Fatal(err)
	}
	e := <-heard
	if age := time.Since(e.Time); age < 0 || age > time.Minute {
		t.Errorf("it was at %v", e.Time)
	}
	e.Time = time.Time{}
	want := Event{What: bpf.CountRejected, Proto: bpf.TCP, From: netip.MustParseAddrPort("203.0.113.2:40000"), To: netip.MustParseAddrPort("192.0.2.10:80")}
	if e != want {
		t.Errorf("heard %+v, want %+v", e, want)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if until, err := readUntil(packet); err != nil || until != 0 {
		t.Errorf("programs tell until %d: %v", until, err)
	}
}

// A listener that was killed is not waited for.
func TestListenFollowsOneThatWasKilled(t *testing.T) {
	packet, _ := rig(t)
	if err := packet.Map(bpf.MapMonitor).Put(uint32(0), now()-1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Listen(ctx, packet, nil); err != nil {
		t.Error(err)
	}
}

func TestListenSaysWhatTheKernelLacks(t *testing.T) {
	if err := Listen(context.Background(), &bpf.PacketMaps{}, nil); !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
}
