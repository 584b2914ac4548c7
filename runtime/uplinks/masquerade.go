package uplinks

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/devices"
)

// writePorts tells the programs which ports masquerade has.
func (k *Keeper) writePorts(st *Status) error {
	ports, err := k.cfg.Ports()
	if err != nil {
		return fmt.Errorf("find ports for endpoints on other nodes: %w", err)
	}
	st.Ports = ports
	control := bpf.PacketControl{FirstPort: ports.First, Ports: uint16(ports.Len())}
	if err := k.packet.Map(bpf.MapPacketControl).Put(uint32(0), control); err != nil {
		return fmt.Errorf("write the ports for endpoints on other nodes: %w", err)
	}
	return nil
}

// readSources reads what a former runtime has written.
func (k *Keeper) readSources() error {
	var key bpf.MasqueradeKey
	var addr bpf.Address
	entries := k.packet.Map(bpf.MapMasquerade).Iterate()
	for entries.Next(&key, &addr) {
		k.sources[key] = addr
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read this node's addresses for endpoints on other nodes: %w", err)
	}
	return nil
}

// writeSources tells the programs which address of this node packets get that leave by a device for an endpoint on another node.
func (k *Keeper) writeSources(uplinks []devices.Uplink) error {
	want := map[bpf.MasqueradeKey]bpf.Address{}
	for _, u := range uplinks {
		for _, s := range u.Sources {
			want[bpf.MasqueradeKeyOf(u.Index, s.Destination)] = bpf.AddressOf(s.Addr)
		}
	}
	m := k.packet.Map(bpf.MapMasquerade)
	var errs []error
	for key, addr := range want {
		if has, ok := k.sources[key]; ok && has == addr {
			continue
		}
		if err := m.Put(key, addr); err != nil {
			errs = append(errs, fmt.Errorf("write this node's address for endpoints on other nodes: %w", err))
			continue
		}
		k.sources[key] = addr
	}
	for key := range k.sources {
		if _, ok := want[key]; ok {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // somebody may have removed it
			errs = append(errs, fmt.Errorf("remove a former address of this node: %w", err))
			continue
		}
		delete(k.sources, key)
	}
	return errors.Join(errs...)
}
