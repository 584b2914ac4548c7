package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/proof"
)

// proofTime is for one connection.
const proofTime = time.Second

// proveOne connects to the API service for real. It counts as soon as it is
// translated, no matter who answers.
func (d *Dataplane) proveOne(ctx context.Context, vip netip.AddrPort) error {
	sockets := d.sockets()
	p := proof.Prover{Sockets: sockets, Asked: proof.Translated}.Once(ctx, vip, proofTime)
	if now := d.sockets(); !p.OK && now != sockets { // the programs write to another map since it has grown
		p = proof.Prover{Sockets: now, Asked: proof.Translated}.Once(ctx, vip, proofTime)
	}
	if !p.OK {
		return fmt.Errorf("a connection to %s was not translated (it ended with: %s): is this process below %s? `firsthop doctor` says more", vip, p.Reason, d.CgroupPath())
	}
	return nil
}

// CgroupPath is the cgroup's path on the host.
func (d *Dataplane) CgroupPath() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cgroup.HostPath
}

// sockets is what the programs remember of sockets.
func (d *Dataplane) sockets() *ebpf.Map {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.maps.Map(bpf.MapSockRevNat)
}

// BackendOf tells to which backend the programs led a connection; not ok: they
// don't remember it, as they need not have.
func (d *Dataplane) BackendOf(conn net.Conn) (netip.AddrPort, bool) {
	return proof.BackendOf(d.sockets(), conn)
}

// ErrNoAPIService says that there is nothing to prove.
var ErrNoAPIService = errors.New("the table has no frontend for the API service")

// served are the addresses of the API service that the table has.
func (d *Dataplane) served(vips []netip.AddrPort) ([]netip.AddrPort, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []netip.AddrPort
	for _, v := range vips {
		var fe bpf.Frontend
		if err := d.maps.Map(bpf.MapFrontend).Lookup(bpf.FrontendKeyOf(v, bpf.TCP), &fe); err == nil {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w (%v)", ErrNoAPIService, vips)
	}
	return out, nil
}

// Prove proves each address of the API service; nil: all are served.
func (d *Dataplane) Prove(ctx context.Context, vips []netip.AddrPort) error {
	if d.balancer.Off {
		return nil
	}
	served, err := d.served(vips)
	if err != nil {
		return err
	}
	for _, v := range served {
		if err := d.proveOne(ctx, v); err != nil {
			return err
		}
	}
	return nil
}
