package sockets

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/sockdiag"
	"github.com/firsthop/firsthop/runtime/netns"
)

const (
	// againTime is when a socket that was not found on a stale backend is looked for once more: it may have been
	// connecting while the table changed.
	againTime = 500 * time.Millisecond
	// searchPause is how long sockets are not looked for that were never found, after that was done; longer where it takes
	// longer than a tenth of that: the kernel walks through all sockets of the machine for each network namespace.
	searchPause = 700 * time.Millisecond
	// searchTime is how long a list of all sockets may take before it is said that it hangs.
	searchTime = 10 * time.Second
)

// maxFilter is by how many backends the kernel is asked to filter.
const maxFilter = 64

// owner is where a socket was found.
type owner struct {
	netns  netns.Namespace
	socket sockdiag.Socket
	holder holder // pid 0: none was found
	seen   uint64 // the generation in which the kernel listed it

	needed time.Time // a holder was looked for, and is not known yet
	sought time.Time // the last time that none was found
}

// locate finds out where candidates' sockets are, and returns those that are connected as the way back says, as far as is
// known: what was found earlier is asked again before it is used. Those that were never found are looked for, if that was
// not done just now; most of them are closed.
func (r *Reconciler) locate(ctx context.Context, due []*candidate) ([]*candidate, error) {
	at := r.now()
	lost := map[*candidate]bool{}
	for _, c := range due {
		if r.owners[c.cookie] == nil || c.misses > 0 {
			lost[c] = true
		}
	}
	var err error
	switch {
	case len(lost) == 0:
	case r.searching.underWay():
		for c := range lost {
			c.due = at.Add(againTime)
		}
	case at.Before(r.nextSearch):
		for c := range lost {
			c.due = r.nextSearch
		}
	default:
		err = r.search(ctx, lost)
		for c := range lost {
			if r.lost[c] { // not known yet
				c.due = at.Add(againTime)
			} else if c.misses == 0 && r.owners[c.cookie] != nil {
				delete(lost, c)
			}
		}
	}
	if ctx.Err() != nil {
		return nil, nil
	}
	due = slices.DeleteFunc(due, func(c *candidate) bool { return lost[c] })
	return r.findHolders(ctx, due), errors.Join(err, r.searching.hangs(listing, searchTime))
}

// missed notes that a candidate's socket was not found on its backend; complete: nor could it have been overlooked.
func (r *Reconciler) missed(c *candidate, complete bool, at time.Time) {
	if !complete {
		c.due = at.Add(interval)
		return
	}
	c.misses++
	c.due = at.Add(againTime)
	if c.misses > 1 {
		r.settle(c, at)
	}
}

// listed are sockets of one network namespace.
type listed struct {
	netns   netns.Namespace
	sockets []sockdiag.Socket
}

// found is what a search saw.
type found struct {
	spaces   []listed
	complete bool // all namespaces that could be found were looked at, or all wanted sockets were met
	err      error
}

// listing is what a search and a sweep are, in errors.
const listing = "a list of the node's sockets"

// search looks for the sockets of candidates in all network namespaces. What it finds is in r.owners; r.lost are the
// candidates of a search that is not over.
func (r *Reconciler) search(ctx context.Context, lost map[*candidate]bool) error {
	wanted := map[uint64]bool{}
	protos := map[bpf.Proto]bool{}
	backends := map[netip.AddrPort]bool{}
	for c := range lost {
		wanted[c.cookie], protos[c.proto], backends[c.backend] = true, true, true
	}
	var filter []byte
	if len(backends) <= maxFilter {
		filter = sockdiag.ConnectedTo(slices.Collect(maps.Keys(backends)))
	}
	where := r.cfg.Namespaces
	r.lost = maps.Clone(lost)
	f, done, _ := r.searching.run(r.patience, func() found { return listWanted(ctx, where, protos, wanted, filter) })
	r.mu.Lock()
	r.status.Searches++
	r.mu.Unlock()
	if !done || ctx.Err() != nil {
		return nil
	}
	return r.searched(&f, r.generation)
}

// takeSearch takes the result of a search that took longer than a look.
func (r *Reconciler) takeSearch() error {
	if f, done := r.searching.take(); done {
		return r.searched(&f, r.generation-1)
	}
	return nil
}

// searched takes the result of a search, of sockets as they were in a generation.
func (r *Reconciler) searched(f *found, generation uint64) error {
	at := r.now()
	r.nextSearch = at.Add(r.pause(r.searching.took()))
	for c := range r.lost {
		r.disown(c.cookie)
	}
	for _, space := range f.spaces {
		r.own(&space, generation)
	}
	for c := range r.lost {
		o := r.owners[c.cookie]
		if o != nil && o.socket.Remote() == c.backend {
			c.misses = 0
		} else {
			r.missed(c, f.complete || o != nil, at)
		}
	}
	r.lost = nil
	return f.err
}

// pauseAfter is how long sockets are not looked for again after that took a time.
func pauseAfter(took time.Duration) time.Duration { return max(min(share*took, searchPause), 10*took) }

// listWanted lists those of wanted sockets that are connected, in all network namespaces or until all were met. The kernel
// leaves out what does not pass the filter.
func listWanted(ctx context.Context, where netns.Config, protos map[bpf.Proto]bool, wanted map[uint64]bool, filter []byte) (f found) {
	list, listErr := where.List()
	left := len(wanted)
	var failed error
	visited := where.Visit(ctx, list, func(n netns.Namespace) bool {
		here := listed{netns: n}
		for proto := range protos {
			failed = errors.Join(failed, sockdiag.List(proto, sockdiag.Connected(proto), filter, func(s *sockdiag.Socket) {
				if wanted[s.Cookie()] {
					here.sockets = append(here.sockets, *s)
				}
			}))
		}
		if len(here.sockets) > 0 {
			left -= len(here.sockets)
			f.spaces = append(f.spaces, here)
		}
		return left > 0 && !errors.Is(failed, sockdiag.ErrNotSupported)
	})
	f.err = errors.Join(listErr, failed, visited)
	f.complete = left <= 0 || f.err == nil
	return f
}

// own takes note of where sockets are, or were in a generation.
func (r *Reconciler) own(space *listed, generation uint64) {
	for i := range space.sockets {
		s := &space.sockets[i]
		o := r.owners[s.Cookie()]
		if o == nil {
			o = &owner{}
			r.owners[s.Cookie()] = o
		}
		o.netns, o.socket, o.seen = space.netns, *s, generation
	}
}

// disown forgets where a socket was found.
func (r *Reconciler) disown(cookie uint64) {
	if o := r.owners[cookie]; o != nil {
		delete(r.held, o.holder)
		delete(r.owners, cookie)
	}
}

// dropOwners forgets where sockets were found that had no way back any more: known are those that had one, sorted.
func (r *Reconciler) dropOwners(known []uint64) {
	for cookie, o := range r.owners {
		if _, is := slices.BinarySearch(known, cookie); !is && o.seen != r.generation {
			r.disown(cookie)
		}
	}
}
