package sockets

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/runtime/netns"
)

// maxFilter is by how many backends the kernel is asked to filter.
const maxFilter = 64

// listed are sockets of one network namespace.
type listed struct {
	netns   netns.Namespace
	sockets []socket
}

// found is what a search saw.
type found struct {
	spaces   []listed
	complete bool // all namespaces that could be found were looked at, or all wanted sockets were met
}

// search looks for the sockets of candidates in all network namespaces. What it finds is in r.owners, of the present
// generation. complete: what was not found is not there.
func (r *Reconciler) search(ctx context.Context, lost map[*candidate]bool) (complete bool, err error) {
	wanted := map[uint64]bool{}
	protos := map[bpf.Proto]bool{}
	backends := map[netip.AddrPort]bool{}
	for c := range lost {
		wanted[c.cookie], protos[c.proto], backends[c.backend] = true, true, true
		r.disown(c.cookie)
	}
	var filter []byte
	if len(backends) <= maxFilter {
		filter = connectedTo(slices.Collect(maps.Keys(backends)))
	}
	where := r.cfg.Namespaces
	got := make(chan found, 1)
	began := time.Now()
	err = r.searching.run("a list of the node's sockets", searchTime, func() error {
		f, err := listWanted(ctx, where, protos, wanted, filter)
		got <- f
		return err
	})
	r.nextSearch = r.now().Add(r.pause(time.Since(began)))
	r.mu.Lock()
	r.status.Searches++
	r.mu.Unlock()
	select {
	case f := <-got:
		for _, space := range f.spaces {
			r.own(&space)
		}
		return f.complete, err
	default: // it hangs
		return false, err
	}
}

// pauseAfter is how long sockets are not looked for again after that took a time.
func pauseAfter(took time.Duration) time.Duration { return max(min(share*took, searchPause), 10*took) }

// listWanted lists those of wanted sockets that are connected, in all network namespaces or until all were met. The kernel
// leaves out what does not pass the filter.
func listWanted(ctx context.Context, where netns.Config, protos map[bpf.Proto]bool, wanted map[uint64]bool, filter []byte) (f found, err error) {
	list, listErr := where.List()
	left := len(wanted)
	var failed error
	visited := where.Visit(ctx, list, func(n netns.Namespace) bool {
		here := listed{netns: n}
		for proto := range protos {
			failed = errors.Join(failed, listHere(proto, connected(proto), filter, func(s *socket) {
				if wanted[s.cookie()] {
					here.sockets = append(here.sockets, *s)
				}
			}))
		}
		if len(here.sockets) > 0 {
			left -= len(here.sockets)
			f.spaces = append(f.spaces, here)
		}
		return left > 0 && !errors.Is(failed, ErrNotSupported)
	})
	err = errors.Join(listErr, failed, visited)
	f.complete = left <= 0 || err == nil
	return f, err
}

// own takes note of where sockets are.
func (r *Reconciler) own(space *listed) {
	for i := range space.sockets {
		s := &space.sockets[i]
		o := r.owners[s.cookie()]
		if o == nil {
			o = &owner{}
			r.owners[s.cookie()] = o
		}
		o.netns, o.socket, o.seen = space.netns, *s, r.generation
	}
}

// listHere lists the sockets of a protocol in the calling thread's network namespace.
func listHere(proto bpf.Proto, states uint32, filter []byte, each func(*socket)) error {
	var families []uint8
	for six, family := range map[bool]uint8{false: unix.AF_INET, true: unix.AF_INET6} {
		if inUse(proto, six) {
			families = append(families, family)
		}
	}
	if len(families) == 0 {
		return nil
	}
	d, err := openDiag(maxAnswer)
	if err != nil {
		return err
	}
	defer d.close()
	for _, family := range families {
		if err := d.dump(family, proto, states, filter, each); err != nil {
			return err
		}
	}
	return nil
}

// findHolders looks for who holds those sockets of candidates that may be moved, among the processes of their network
// namespaces; and, while at it, all others there that may have to be moved one day.
func (r *Reconciler) findHolders(ctx context.Context, due []*candidate) {
	need := map[uint64]map[uint64]bool{} // cookies by network namespace
	for _, c := range due {
		o := r.owners[c.cookie]
		if move, _ := r.wants(c); move && o.holder.pid == 0 && o.socket.inode != 0 {
			if need[o.netns.Inode] == nil {
				need[o.netns.Inode] = map[uint64]bool{}
			}
			need[o.netns.Inode][c.cookie] = true
		}
	}
	if len(need) == 0 {
		return
	}
	where := r.cfg.Namespaces
	where.EveryPid = true
	list, err := where.List()
	missing := map[uint64]bool{}
	look := finder{proc: procOf(where), held: r.held, refused: err, found: func(cookie uint64, h holder) {
		r.owners[cookie].holder, r.held[h] = h, cookie
		delete(missing, cookie)
	}}
	if !errors.Is(err, privileges.ErrRefused) {
		look.refused = nil
	}
	var all []int
	pids := map[uint64][]int{}
	for _, n := range list {
		pids[n.Inode] = n.Pids
		all = append(all, n.Pids...)
	}
	inodes := map[uint64]map[uint32]uint64{}
	for cookie, o := range r.owners {
		if need[o.netns.Inode] != nil && o.holder.pid == 0 && o.socket.inode != 0 {
			if inodes[o.netns.Inode] == nil {
				inodes[o.netns.Inode] = map[uint32]uint64{}
			}
			inodes[o.netns.Inode][o.socket.inode] = cookie
		}
	}
	for netns, cookies := range need {
		maps.Copy(missing, cookies)
		look.wanted = inodes[netns]
		look.look(ctx, pids[netns])
	}
	r.lookEverywhere(ctx, all, &look, missing)
	if len(missing) == 0 {
		return
	}
	if look.refused == nil {
		look.refused = mayLook()
	}
	if look.refused != nil {
		r.refused(look.refused)
	}
}

// lookEverywhere looks for holders among all processes: a socket may be of another network namespace than its process. It
// takes its time, so not each time.
func (r *Reconciler) lookEverywhere(ctx context.Context, pids []int, look *finder, missing map[uint64]bool) {
	if len(missing) == 0 || r.now().Sub(r.everywhere) < interval {
		return
	}
	r.everywhere = r.now()
	look.wanted = map[uint32]uint64{}
	for cookie := range missing {
		look.wanted[r.owners[cookie].socket.inode] = cookie
	}
	look.look(ctx, pids)
}

// mayLook says what keeps this process from seeing who holds sockets, nil: nothing. Processes of which not even the network
// namespace may be seen are not looked through at all.
func mayLook() error {
	p, err := privileges.Read()
	if err != nil || p.Has(capability.CAP_SYS_PTRACE) {
		return nil
	}
	return privileges.Refused("look for", "the processes that hold sockets", unix.EPERM, capability.CAP_SYS_PTRACE)
}

func procOf(c netns.Config) string {
	if c.Proc == "" {
		return "/proc"
	}
	return c.Proc
}

// tools are what a socket is worked on with.
type tools struct {
	*diag
	copier
}

func (t *tools) close() {
	t.diag.close()
	t.copier.close()
}

// pool are the tools for a network namespace.
type pool struct {
	mu     sync.Mutex
	closed bool
	free   []*tools
}

// open opens the tools for jobs: as many for each network namespace as may be used at a time.
func (r *Reconciler) open(ctx context.Context, jobs []*job) (map[uint64]*pool, error) {
	counts := map[uint64]int{}
	var list []netns.Namespace
	for _, j := range jobs {
		if counts[j.netns]++; counts[j.netns] == 1 {
			list = append(list, r.owners[j.at.cookie].netns)
		}
	}
	pools := map[uint64]*pool{}
	var failed error
	err := r.cfg.Namespaces.Visit(ctx, list, func(n netns.Namespace) bool {
		p := &pool{}
		for range min(workers, counts[n.Inode]) {
			d, err := openDiag(smallAnswer)
			if err != nil {
				failed = err
				break
			}
			p.free = append(p.free, &tools{diag: d})
		}
		if len(p.free) > 0 {
			pools[n.Inode] = p
		}
		return true
	})
	return pools, errors.Join(failed, err)
}

func (p *pool) take() *tools {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil
	}
	t := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return t
}

func (p *pool) put(t *tools) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		t.close()
		return
	}
	p.free = append(p.free, t)
}

// close closes the tools; those that a job still has are closed when it ends.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, t := range p.free {
		t.close()
	}
	p.free = nil
}

// job is what is done with one socket. It shares nothing with the Reconciler: it may never end.
func (p *pool) job(j *job, t target, frontend netip.AddrPort, o owner, sure bool) func() error {
	ends := j.ends
	return func() (err error) {
		tools := p.take()
		if tools == nil { // those that hang have them
			return errOutOfTime{"other work in this network namespace"}
		}
		defer p.put(tools)
		if ends {
			s := o.socket.to(t.backend)
			return tools.destroy(&s, t.proto)
		}
		j.socket, err = move(tools.diag, &tools.copier, o.socket, o.holder, sure, t.backend, frontend)
		return err
	}
}
