package sockets

import (
	"context"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/sockdiag"
)

// growRetry is the least time between growths that failed.
const growRetry = 5 * time.Minute

// grow has those maps grow of which living sockets take more than three quarters. live are the cookies of all UDP
// sockets, sorted. It does not wait: a growth waits for locks that an init stage may hold.
func (r *Reconciler) grow(ctx context.Context, m *Maps, live []uint64) {
	r.mu.Lock()
	due := r.growDue
	r.mu.Unlock()
	if r.cfg.Grow == nil || r.now().Before(due) || !r.growing.CompareAndSwap(false, true) {
		return
	}
	full, err := fullMaps(m, live)
	if err != nil || len(full) == 0 {
		r.growing.Store(false)
		return // that a map can't be read is said by who sweeps it
	}
	go func() {
		defer r.growing.Store(false)
		if err := r.cfg.Grow(ctx, full...); err != nil && ctx.Err() == nil {
			r.mu.Lock()
			r.growDue = r.now().Add(growRetry)
			r.mu.Unlock()
			r.cfg.Log.Warn("maps of sockets did not grow", "maps", full, "err", err)
		}
	}()
}

// fullMaps names the maps that should grow, and may.
func fullMaps(m *Maps, live []uint64) (full []bpf.MapName, err error) {
	isLive := func(cookie uint64) bool {
		_, is := slices.BinarySearch(live, cookie)
		return is
	}
	note := func(name bpf.MapName, bm *ebpf.Map, most uint32, used func() (int, error)) {
		if err != nil || bm.MaxEntries() >= most {
			return
		}
		var n int
		if n, err = used(); err == nil && n > int(bm.MaxEntries()/4*3) {
			full = append(full, name)
		}
	}
	if len(m.RevNat) > 0 {
		note(bpf.MapUDPSockRevNat, m.RevNat[0], bpf.MaxUDPSockets, func() (n int, err error) {
			err = readMap(m.RevNat[0], bpf.ReadConfig{Batch: m.Batch}, func(k *bpf.UDPRevNatKey, _ *bpf.UDPRevNat) {
				if isLive(k.Cookie) {
					n++
				}
			})
			return n, err
		})
	}
	if len(m.Affinity) > 0 {
		note(bpf.MapUDPSockAffinity, m.Affinity[0], bpf.MaxUDPSockets, func() (n int, err error) {
			err = readMap(m.Affinity[0], bpf.ReadConfig{Batch: m.Batch}, func(k *bpf.SockAffinityKey, _ *bpf.SockAffinity) {
				if isLive(k.Cookie) {
					n++
				}
			})
			return n, err
		})
	}
	if m.TCP != nil {
		// Which of them asked for a Service is known of the last ones only: that is what the map is too small for.
		note(bpf.MapSockRevNat, m.TCP, bpf.MaxTCPSockets, func() (int, error) { return sockdiag.TCPSockets(), nil })
	}
	return full, err
}
