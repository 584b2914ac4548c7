package sockets

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/sockdiag"
	"github.com/firsthop/firsthop/runtime/netns"
)

// tools are what a socket is worked on with.
type tools struct {
	*sockdiag.Conn
	copier
}

func (t *tools) close() {
	t.Conn.Close()
	t.copier.close()
}

// pool are the tools for a network namespace.
type pool struct {
	tenant tenant
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
		p := &pool{tenant: tenantHere(n.Inode)}
		for range min(workers, counts[n.Inode]) {
			d, err := sockdiag.Open()
			if err != nil {
				failed = err
				break
			}
			p.free = append(p.free, &tools{Conn: d})
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

// tenantHere says whose the calling thread's network namespace is, which has this inode.
func tenantHere(netns uint64) tenant {
	const getUserNS = 0xb701 // NS_GET_USERNS of linux/nsfs.h, Linux 4.9
	file, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tenant(netns)
	}
	defer unix.Close(file)
	owner, err := unix.IoctlRetInt(file, getUserNS)
	if errors.Is(err, unix.EPERM) { // one that is not this process's, nor below
		return foreign
	}
	if err != nil {
		return tenant(netns)
	}
	defer unix.Close(owner)
	var its, ours unix.Stat_t
	if unix.Fstat(owner, &its) == nil && unix.Stat("/proc/self/ns/user", &ours) == nil && its.Ino != ours.Ino {
		return foreign
	}
	return tenant(netns)
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
			s := o.socket.To(t.backend)
			return tools.Destroy(&s, t.proto)
		}
		j.socket, err = move(tools.Conn, &tools.copier, o.socket, o.holder, sure, t.backend, frontend)
		return err
	}
}
