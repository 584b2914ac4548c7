package sockets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/sockdiag"
	"github.com/firsthop/firsthop/runtime/netns"
)

const (
	// sweepInterval is how often entries of closed sockets are removed, at least.
	sweepInterval = time.Minute
	// usageInterval is how often it is looked how many were added.
	usageInterval = time.Second
	// sweepAt is the part of a map that may be added to it until the next sweep, as a divisor.
	sweepAt = 4
)

// sweeper removes the entries of closed sockets. A socket counts as closed that no network namespace had in two sweeps:
// while it is bound to no port, as between a connection that was dissolved and the next one, the kernel lists it nowhere.
type sweeper struct {
	listing  errand[sockets]
	due      time.Time        // of the next sweep
	check    time.Time        // of the next look at how many were added
	added    [2]bpf.SockUsage // at the last sweep
	suspects []uint64         // cookies that no namespace had then, sorted
}

// next is when there is something to do.
func (s *sweeper) next() time.Time {
	if s.check.Before(s.due) {
		return s.check
	}
	return s.due
}

// sweep removes entries of closed sockets, if it is time to. A list of all sockets that takes its time is waited for by
// later calls.
func (r *Reconciler) sweep(ctx context.Context) {
	s, at := &r.sweeper, r.now()
	s.check = at.Add(usageInterval)
	m, err := r.cfg.Maps()
	all, done := s.listing.take()
	if s.listing.underWay() {
		if err = s.listing.hangs(listing, searchTime); err != nil {
			r.swept(0, err)
		}
		return
	}
	if !done && err == nil {
		var full bool
		if full, err = s.filling(&m); err == nil && !full && at.Before(s.due) {
			return
		}
		if err == nil {
			s.due = at.Add(sweepInterval)
			all, done, err = s.list(ctx, &m, r.cfg.Namespaces, r.patience)
		}
	}
	if err == nil && !done || ctx.Err() != nil {
		return
	}
	s.due = at.Add(sweepInterval)
	n := 0
	if err == nil {
		for i := range all.spaces {
			r.own(&all.spaces[i], r.generation)
		}
		n, err = s.remove(&m, &all)
	}
	s.check = r.now().Add(max(usageInterval, share*max(s.listing.took(), r.now().Sub(at))))
	if len(s.suspects) > 0 && err == nil { // the second look
		s.due = at.Add(sweepInterval / 2)
	}
	if err == nil {
		r.grow(ctx, &m, all.live)
	}
	if all.known != nil {
		r.dropOwners(all.known)
	}
	r.swept(n, err)
}

// swept takes the result of a sweep.
func (r *Reconciler) swept(n int, err error) {
	r.mu.Lock()
	st := &r.status
	st.Swept += uint64(n)
	changed := err != nil && st.SweepError == nil
	st.LastSweep, st.SweepError = r.now(), err
	r.mu.Unlock()
	if changed {
		r.cfg.Log.Warn("entries of closed sockets were not removed", "err", err)
	}
}

// filling reports whether so many entries were added since the last sweep that it is time for one.
func (s *sweeper) filling(m *Maps) (bool, error) {
	if m.Usage == nil {
		return false, nil
	}
	added, err := readUsage(m.Usage)
	if err != nil {
		return false, err
	}
	for i, list := range [][]*ebpf.Map{m.RevNat, m.Affinity} {
		if len(list) > 0 && added[i].Inserted-s.added[i].Inserted > uint64(list[0].MaxEntries()/sweepAt) || added[i].Overflowed != s.added[i].Overflowed {
			return true, nil
		}
	}
	return false, nil
}

// sockets are the UDP sockets of the node.
type sockets struct {
	known  []uint64 // cookies that maps had entries of before, sorted; nil: they could not be read
	live   []uint64 // cookies of all, sorted
	spaces []listed // those that are connected and known
	err    error
}

// list lists all sockets. It waits for a time only, done: it is over.
func (s *sweeper) list(ctx context.Context, m *Maps, where netns.Config, wait time.Duration) (all sockets, done bool, err error) {
	if m.Usage != nil {
		if s.added, err = readUsage(m.Usage); err != nil {
			return all, false, err
		}
	}
	known, err := cookiesOf(m) // first: a socket that is born after this is in no entry that was read
	if err != nil {
		return all, false, err
	}
	all, done, _ = s.listing.run(wait, func() sockets { return listLive(ctx, where, known) })
	return all, done, nil
}

// remove removes the entries of sockets that were closed by the last sweep, and are.
func (s *sweeper) remove(m *Maps, all *sockets) (int, error) {
	if all.err != nil {
		return 0, all.err
	}
	closed := slices.DeleteFunc(slices.Clone(all.known), func(cookie uint64) bool {
		_, is := slices.BinarySearch(all.live, cookie)
		return is
	})
	former := s.suspects
	s.suspects = slices.DeleteFunc(slices.Clone(closed), func(cookie uint64) bool {
		_, is := slices.BinarySearch(former, cookie)
		return is
	})
	closed = slices.DeleteFunc(closed, func(cookie uint64) bool {
		_, is := slices.BinarySearch(former, cookie)
		return !is
	})
	if len(closed) == 0 {
		return 0, nil
	}
	return removeOf(m, closed)
}

// listLive lists all UDP sockets of the node. Where a network namespace could not be looked into, it is an error: an entry
// may be of a socket there.
func listLive(ctx context.Context, where netns.Config, known []uint64) sockets {
	list, err := where.List()
	if err != nil {
		return sockets{known: known, err: err}
	}
	all := sockets{known: known}
	var failed error
	err = where.Visit(ctx, list, func(n netns.Namespace) bool {
		here := listed{netns: n}
		failed = sockdiag.List(bpf.UDP, sockdiag.AllStates, nil, func(s *sockdiag.Socket) {
			all.live = append(all.live, s.Cookie())
			if _, is := slices.BinarySearch(known, s.Cookie()); is && s.Established() {
				here.sockets = append(here.sockets, *s)
			}
		})
		all.spaces = append(all.spaces, here)
		return failed == nil
	})
	if err = errors.Join(failed, err); err != nil {
		return sockets{known: known, err: err}
	}
	slices.Sort(all.live)
	return all
}

// cookiesOf are the cookies that are in the maps of UDP sockets, sorted, each once.
func cookiesOf(m *Maps) ([]uint64, error) {
	cookies := []uint64{}
	for _, rev := range m.RevNat {
		if err := readMap(rev, bpf.ReadConfig{Batch: m.Batch}, func(k *bpf.UDPRevNatKey, _ *bpf.UDPRevNat) { cookies = append(cookies, k.Cookie) }); err != nil {
			return nil, err
		}
	}
	for _, affinity := range m.Affinity {
		if err := readMap(affinity, bpf.ReadConfig{Batch: m.Batch}, func(k *bpf.SockAffinityKey, _ *bpf.SockAffinity) { cookies = append(cookies, k.Cookie) }); err != nil {
			return nil, err
		}
	}
	slices.Sort(cookies)
	return slices.Compact(cookies), nil
}

// removeOf removes the entries of sockets, whose cookies are sorted.
func removeOf(m *Maps, closed []uint64) (removed int, err error) {
	for _, rev := range m.RevNat {
		n, err := removeWhere(rev, m.Batch, func(k *bpf.UDPRevNatKey, _ *bpf.UDPRevNat) bool {
			_, is := slices.BinarySearch(closed, k.Cookie)
			return is
		})
		if removed += n; err != nil {
			return removed, err
		}
	}
	for _, affinity := range m.Affinity {
		n, err := removeWhere(affinity, m.Batch, func(k *bpf.SockAffinityKey, _ *bpf.SockAffinity) bool {
			_, is := slices.BinarySearch(closed, k.Cookie)
			return is
		})
		if removed += n; err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func removeWhere[K, V any](m *ebpf.Map, batch bool, which func(*K, *V) bool) (int, error) {
	var keys []K
	err := readMap(m, bpf.ReadConfig{Batch: batch}, func(k *K, v *V) {
		if which(k, v) {
			keys = append(keys, *k)
		}
	})
	if err != nil {
		return 0, err
	}
	return remove(m, batch, keys)
}

// readUsage reads how many entries programs ever added: ways back, kept backends.
func readUsage(m *ebpf.Map) (added [2]bpf.SockUsage, err error) {
	for _, i := range []uint32{bpf.SockUsageRevNat, bpf.SockUsageAffinity} {
		if err := m.Lookup(i, &added[i]); err != nil {
			return added, fmt.Errorf("read how many entries UDP sockets have got: %w", err)
		}
	}
	return added, nil
}
