package sockets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
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
	busy     guard
	due      time.Time        // of the next sweep
	check    time.Time        // of the next look at how many were added
	added    [2]bpf.SockUsage // at the last sweep
	suspects []uint64         // cookies that no namespace had then, sorted
	live     []uint64         // those that namespaces have, sorted; only during a sweep
}

// next is when there is something to do.
func (s *sweeper) next() time.Time {
	if s.check.Before(s.due) {
		return s.check
	}
	return s.due
}

// sweep removes entries of closed sockets, if it is time to.
func (r *Reconciler) sweep(ctx context.Context) {
	s, at := &r.sweeper, r.now()
	s.check = at.Add(usageInterval)
	m, err := r.cfg.Maps()
	if err == nil {
		var full bool
		if full, err = s.filling(&m); err == nil && !full && at.Before(s.due) {
			return
		}
	}
	s.due = at.Add(sweepInterval)
	swept := 0
	if err == nil {
		swept, err = s.sweep(ctx, &m, r.cfg.Namespaces, r.own)
	}
	s.check = r.now().Add(max(usageInterval, share*r.now().Sub(at)))
	if ctx.Err() != nil {
		return
	}
	if len(s.suspects) > 0 && err == nil { // the second look
		s.due = at.Add(sweepInterval / 2)
	}
	if err == nil {
		r.grow(ctx, &m, s.live)
	}
	s.live = nil
	r.dropOwners()
	r.mu.Lock()
	st := &r.status
	st.Swept += uint64(swept)
	changed := err != nil && (st.SweepError == nil || st.SweepError.Error() != err.Error())
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

// sweep removes the entries of sockets that were closed by the last sweep, and are. Connected ones that have entries are
// told to own.
func (s *sweeper) sweep(ctx context.Context, m *Maps, where netns.Config, own func(*listed)) (int, error) {
	if m.Usage != nil {
		added, err := readUsage(m.Usage)
		if err != nil {
			return 0, err
		}
		s.added = added
	}
	cookies, err := cookiesOf(m) // first: a socket that is born after this is in no entry that was read
	if err != nil {
		return 0, err
	}
	type result struct {
		live   []uint64
		spaces []listed
	}
	got := make(chan result, 1)
	err = s.busy.run("a list of the node's sockets", searchTime, func() error {
		live, spaces, err := listLive(ctx, where, cookies)
		got <- result{live, spaces}
		return err
	})
	if err != nil {
		s.suspects = nil
		return 0, err
	}
	seen := <-got
	live := seen.live
	s.live = live
	for i := range seen.spaces {
		own(&seen.spaces[i])
	}
	closed := slices.DeleteFunc(slices.Clone(cookies), func(cookie uint64) bool {
		_, is := slices.BinarySearch(live, cookie)
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

// listLive lists all UDP sockets of the node: their cookies, sorted, and those that are connected and known. Where a network
// namespace could not be looked into, it is an error: an entry may be of a socket there.
func listLive(ctx context.Context, where netns.Config, known []uint64) (live []uint64, spaces []listed, err error) {
	list, err := where.List()
	if err != nil {
		return nil, nil, err
	}
	var failed error
	err = where.Visit(ctx, list, func(n netns.Namespace) bool {
		here := listed{netns: n}
		failed = listHere(bpf.UDP, allStates, nil, func(s *socket) {
			live = append(live, s.cookie())
			if _, is := slices.BinarySearch(known, s.cookie()); is && s.state == tcpEstablished {
				here.sockets = append(here.sockets, *s)
			}
		})
		spaces = append(spaces, here)
		return failed == nil
	})
	if err = errors.Join(failed, err); err != nil {
		return nil, nil, err
	}
	slices.Sort(live)
	return live, spaces, nil
}

// cookiesOf are the cookies that are in the maps of UDP sockets, sorted, each once.
func cookiesOf(m *Maps) ([]uint64, error) {
	var cookies []uint64
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
