package sockets

import (
	"context"
	"errors"
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

// maxPids is how many processes of a network namespace are remembered with a socket, to enter it.
const maxPids = 4

// listed are sockets of one network namespace.
type listed struct {
	netns   netns.Namespace // with all of its processes
	sockets []socket        // those that were led to a backend, wanted or not: the next look may want them
}

// found is what a search saw.
type found struct {
	spaces   []listed // that have wanted sockets
	pids     []int    // of all processes
	complete bool     // all namespaces that could be found were looked at, or all wanted sockets were met
}

// search looks for the sockets of candidates in all network namespaces, and for processes that hold them. Whatever it
// finds is in r.owners, of the present generation. complete: what was not found is not there.
func (r *Reconciler) search(ctx context.Context, lost []*candidate) (complete bool, err error) {
	wanted := map[uint64]bool{}
	protos := map[bpf.Proto]bool{}
	for _, c := range lost {
		wanted[c.cookie], protos[c.proto] = true, true
		r.disown(c.cookie)
	}
	slices.Sort(r.cookies)
	where, known := r.cfg.Namespaces, r.cookies
	got := make(chan found, 1)
	began, all := time.Now(), r.cannotMove == nil
	var backends []netip.AddrPort
	for _, c := range lost {
		if !slices.Contains(backends, c.backend) {
			if backends = append(backends, c.backend); len(backends) > maxFilter {
				break
			}
		}
	}
	err = r.searching.run("a list of the node's sockets", searchTime, func() error {
		f, err := listWanted(ctx, where, protos, wanted, backends, all, known)
		got <- f
		return err
	})
	select {
	case f := <-got:
		r.mu.Lock()
		r.status.Searches++
		r.mu.Unlock()
		r.searchCost = time.Since(began)
		return f.complete, errors.Join(err, r.own(ctx, f, lost))
	default: // it hangs
		return false, err
	}
}

// listWanted lists the sockets of the network namespaces that are connected to backends, until all wanted ones were met.
// With all it also lists the other known ones of those namespaces: they will be wanted in their turn.
func listWanted(ctx context.Context, where netns.Config, protos map[bpf.Proto]bool, wanted map[uint64]bool, backends []netip.AddrPort, all bool, known []uint64) (f found, err error) {
	var filter []byte
	if len(backends) <= maxFilter {
		filter = connectedTo(backends)
	}
	where.EveryPid = true
	list, listErr := where.List()
	for _, n := range list {
		f.pids = append(f.pids, n.Pids...)
	}
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
			if all && protos[bpf.UDP] {
				failed = errors.Join(failed, listHere(bpf.UDP, connected(bpf.UDP), nil, func(s *socket) {
					if _, is := slices.BinarySearch(known, s.cookie()); is && !wanted[s.cookie()] {
						here.sockets = append(here.sockets, *s)
					}
				}))
			}
			f.spaces = append(f.spaces, here)
		}
		return left > 0 && !errors.Is(failed, ErrNotSupported)
	})
	err = errors.Join(listErr, failed, visited)
	f.complete = left <= 0 || err == nil
	return f, err
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

// own takes sockets that were found, and looks for who holds those that may be moved.
func (r *Reconciler) own(ctx context.Context, f found, lost []*candidate) error {
	move := map[uint64]bool{} // whose holder is needed now
	for _, c := range lost {
		if m, _ := r.wants(c); m {
			move[c.cookie] = true
		}
	}
	look := finder{proc: procOf(r.cfg.Namespaces), held: r.held, found: func(cookie uint64, h holder) {
		if o := r.owners[cookie]; o != nil {
			o.holder = h
			r.held[h] = cookie
			delete(move, cookie)
		}
	}}
	for _, space := range f.spaces {
		n := space.netns
		pids := n.Pids
		n.Pids = slices.Clip(n.Pids[:min(len(n.Pids), maxPids)])
		need := false
		look.wanted = map[uint32]uint64{}
		for i := range space.sockets {
			s := &space.sockets[i]
			cookie := s.cookie()
			o := r.owners[cookie]
			if o == nil {
				o = &owner{}
				r.owners[cookie] = o
			}
			o.netns, o.socket, o.seen = n, *s, r.generation
			if o.holder.pid == 0 && s.inode != 0 {
				look.wanted[s.inode] = cookie
				need = need || move[cookie]
			}
		}
		if need && r.cannotMove == nil {
			look.look(ctx, pids)
		}
	}
	r.lookEverywhere(ctx, f, &look, move)
	if len(move) == 0 || r.cannotMove != nil {
		return nil
	}
	if look.refused == nil {
		look.refused = mayLook()
	}
	if look.refused != nil {
		r.refused(look.refused)
	}
	return nil
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

// lookEverywhere looks for holders among all processes: a socket may be of another network namespace than its process. It
// takes its time, so not each time.
func (r *Reconciler) lookEverywhere(ctx context.Context, f found, look *finder, move map[uint64]bool) {
	if len(move) == 0 || r.cannotMove != nil || r.now().Sub(r.everywhere) < interval {
		return
	}
	r.everywhere = r.now()
	look.wanted = map[uint32]uint64{}
	for cookie := range move {
		if o := r.owners[cookie]; o != nil && o.socket.inode != 0 {
			look.wanted[o.socket.inode] = cookie
		}
	}
	look.look(ctx, f.pids)
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
func (p *pool) job(t target, frontend netip.AddrPort, o owner, sure, ends bool) func() error {
	return func() error {
		tools := p.take()
		if tools == nil { // those that hang have them
			return errOutOfTime{"other work in this network namespace"}
		}
		defer p.put(tools)
		if ends {
			s := o.socket.to(t.backend)
			return tools.destroy(&s, t.proto)
		}
		return move(tools.diag, &tools.copier, o.socket, o.holder, sure, t.backend, frontend)
	}
}
