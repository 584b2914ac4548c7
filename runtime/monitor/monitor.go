// Package monitor hears from the packet path's programs what becomes of packets that are not simply passed on.
//
// Programs tell as long as somebody listens, and a little longer: nobody has to say that they may stop, so that a listener
// that is killed costs nothing.
package monitor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// ErrNotSupported says that programs can't tell: below Linux 5.8 there are no ring buffers.
var ErrNotSupported = errors.New("this kernel has no ring buffers (Linux 5.8): `firsthop status` has the counts")

// ErrBusy says that somebody else listens: what one reads, no other does.
var ErrBusy = errors.New("another `firsthop monitor` listens; there can be one")

const (
	// listens is for how long programs tell after they were asked to.
	listens = 3 * time.Second
	// renews is how often they are asked.
	renews = time.Second
)

// Event is something that happened to a packet.
type Event struct {
	Time  time.Time       `json:"time"`
	What  bpf.PacketCount `json:"what"`
	Way   bpf.Way         `json:"way"`
	Proto bpf.Proto       `json:"protocol"`
	From  netip.AddrPort  `json:"from"`
	To    netip.AddrPort  `json:"to"`
	// Backend is where a new flow was led; invalid: it is about something else.
	Backend netip.AddrPort `json:"backend,omitzero"`
}

// Listen calls handle for each event until ctx ends, from one goroutine. Events that come faster than handle returns are
// lost once 3,000 of them wait: the counts have them.
func Listen(ctx context.Context, packet *bpf.PacketMaps, handle func(Event)) error {
	events, control := packet.Map(bpf.MapEvents), packet.Map(bpf.MapMonitor)
	if events == nil {
		return ErrNotSupported
	}
	if until, err := readUntil(packet); err != nil {
		return err
	} else if until > now() {
		return ErrBusy
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return fmt.Errorf("listen to the programs: %w", err)
	}
	defer reader.Close()
	defer control.Put(uint32(0), uint64(0))
	boot := time.Now().Add(-time.Duration(now()))
	var asked time.Time
	for ctx.Err() == nil {
		if time.Since(asked) > renews {
			if err := control.Put(uint32(0), now()+uint64(listens)); err != nil {
				return fmt.Errorf("ask the programs to tell: %w", err)
			}
			asked = time.Now()
		}
		reader.SetDeadline(time.Now().Add(renews / 4))
		record, err := reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hear from the programs: %w", err)
		}
		var raw bpf.Event
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("hear from the programs: %w", err)
		}
		handle(eventOf(raw, boot))
	}
	return nil
}

func readUntil(packet *bpf.PacketMaps) (until uint64, err error) {
	if err := packet.Map(bpf.MapMonitor).Lookup(uint32(0), &until); err != nil {
		return 0, fmt.Errorf("look whether somebody listens: %w", err)
	}
	return until, nil
}

func eventOf(raw bpf.Event, boot time.Time) Event {
	e := Event{
		Time: boot.Add(time.Duration(raw.At)), What: bpf.PacketCount(raw.What), Way: raw.Key.Way, Proto: raw.Key.Proto,
		From: raw.Key.Source(), To: raw.Key.Destination(),
	}
	if raw.Port != (bpf.Port{}) {
		e.Backend = netip.AddrPortFrom(raw.To.Addr(), raw.Port.Uint16())
	}
	return e
}

// now is the clock of the programs: ns since the boot, without times of suspension.
func now() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return uint64(ts.Nano())
}
