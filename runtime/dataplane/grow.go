package dataplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel/memory"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/writer"
)

// Grow doubles the capacity of the parts of the table that are full, and returns
// what to write to from now on.
func (d *Dataplane) Grow(ctx context.Context, short writer.Short) (store *nat.Kernel, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	err = d.locked(ctx, func(j *instance.Journal) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		store, err = d.growLocked(j, short)
		return err
	})
	return store, err
}

func (d *Dataplane) growLocked(j *instance.Journal, short writer.Short) (*nat.Kernel, error) {
	sizes, err := d.larger(short)
	if err != nil {
		return nil, err
	}
	return d.growTo(j, sizes)
}

// GrowSockets doubles the maps of sockets that are given, up to bpf.MostSockets, while sockets come and go: no program forgets
// one meanwhile. The maps that Maps gives are others afterwards; those that it gave before stay open until the next growth.
// What has to grow for the table itself is for Grow.
//
// What others remove from a map while it is copied may be in the larger one.
//
// It returns what to write to from now on; nil: nothing grew.
func (d *Dataplane) GrowSockets(ctx context.Context, full ...bpf.MapName) (store *nat.Kernel, err error) {
	if _, grows := d.twice(d.Maps(), full); !grows { // it may be asked for often: no lock is taken
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	err = d.locked(ctx, func(j *instance.Journal) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		sizes, grows := d.twice(d.maps, full)
		if !grows {
			return nil
		}
		store, err = d.growTo(j, sizes)
		return err
	})
	return store, err
}

// twice are the sizes of maps of sockets, doubled as far as they may be; grows: that is more than some have.
func (d *Dataplane) twice(maps *bpf.Maps, full []bpf.MapName) (sizes bpf.Sizes, grows bool) {
	udp, tcp := bpf.MostSockets(d.limit())
	double := func(size *uint32, m *ebpf.Map, most uint32) {
		if has := m.MaxEntries(); has < most {
			*size, grows = min(2*has, most), true
		}
	}
	for _, name := range full {
		switch m := maps.Map(name); name {
		case bpf.MapUDPSockRevNat:
			double(&sizes.UDPSockets, m, udp)
		case bpf.MapUDPSockAffinity:
			double(&sizes.UDPSessions, m, udp)
		case bpf.MapSockRevNat:
			double(&sizes.TCPSockets, m, tcp)
		}
	}
	return sizes, grows
}

func memoryLimit() uint64 {
	limit, _ := memory.Limit("")
	return limit
}

func (d *Dataplane) growTo(j *instance.Journal, sizes bpf.Sizes) (*nat.Kernel, error) {
	grown, err := natinit.Grow(d.attachConfig(j), d.programs(), sizes)
	if grown == d.maps {
		return nil, err
	}
	if err != nil {
		d.log.Warn("something of the smaller table was left behind", "err", err)
	}
	for _, m := range d.former { // nothing writes to the one before the last
		if err := m.ReleaseTable(); err != nil {
			d.log.Warn("a table that was grown out of is still open", "err", err)
		}
	}
	d.former = append(d.former, d.maps) // a write may still be on its way; closed at the end
	d.maps, d.store = grown, nat.NewKernel(grown, d.features)
	d.present.Store(grown)
	d.log.Info("the table has more capacity", "frontends", sizes.Frontends, "services", sizes.Services, "backends", sizes.Backends, "ranges", sizes.SourceRanges,
		"udp_sockets", sizes.UDPSockets, "udp_sessions", sizes.UDPSessions, "tcp_sockets", sizes.TCPSockets)
	if err := d.attach(j); err != nil { // all are as they should be; this opens them
		d.log.Warn("cannot verify the programs of the larger table", "err", err)
	}
	d.lookLocked()
	return d.store, nil
}

// larger is the size of each part that is full, doubled. The others stay.
func (d *Dataplane) larger(short writer.Short) (bpf.Sizes, error) {
	var sizes bpf.Sizes
	var errs []error
	for _, p := range []struct {
		part writer.Short
		what string
		has  uint32
		want *uint32
	}{
		{writer.ShortFrontends, "frontends", d.maps.Map(bpf.MapFrontend).MaxEntries(), &sizes.Frontends},
		{writer.ShortServices, "services", d.maps.Services(), &sizes.Services},
		{writer.ShortBackends, "backends", d.maps.Map(bpf.MapBackend).MaxEntries(), &sizes.Backends},
		{writer.ShortRanges, "source ranges", d.maps.Map(bpf.MapSourceRange).MaxEntries(), &sizes.SourceRanges},
	} {
		switch {
		case !short.Has(p.part):
		case p.has >= bpf.MaxEntries:
			errs = append(errs, fmt.Errorf("the map of %s has %d entries, the most that it may have", p.what, p.has))
		default:
			*p.want = min(p.has*2, bpf.MaxEntries)
		}
	}
	if sizes == (bpf.Sizes{}) {
		return sizes, errors.Join(errs...)
	}
	return sizes, nil
}
