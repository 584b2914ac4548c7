package sockets

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/runtime/netns"
)

// finder looks for who holds sockets.
type finder struct {
	proc string
	// held are the descriptors that are known already, and not read again.
	held map[holder]uint64
	// wanted are sockets by the inode of their file.
	wanted map[uint32]uint64
	found  func(cookie uint64, h holder)
	// refused is why processes could not be looked at; nil: all could.
	refused error
}

// look goes through processes until all wanted sockets are found.
func (f *finder) look(ctx context.Context, pids []int) {
	for _, pid := range pids {
		if len(f.wanted) == 0 || ctx.Err() != nil {
			return
		}
		f.process(pid)
	}
}

func (f *finder) process(pid int) {
	path := filepath.Join(f.proc, strconv.Itoa(pid), "fd")
	dir, err := os.Open(path)
	if err != nil {
		f.note(path, err)
		return
	}
	defer dir.Close()
	link := make([]byte, 64)
	for len(f.wanted) > 0 {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			fd, _ := strconv.Atoi(name)
			h := holder{pid, fd}
			if _, known := f.held[h]; known {
				continue
			}
			n, err := unix.Readlinkat(int(dir.Fd()), name, link)
			if err != nil {
				f.note(path, err)
				continue
			}
			inode, ok := socketInode(link[:n])
			if !ok {
				continue
			}
			if cookie, is := f.wanted[inode]; is {
				delete(f.wanted, inode)
				f.found(cookie, h)
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}

func (f *finder) note(path string, err error) {
	if f.refused == nil && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
		// A process of another user keeps root from its descriptors by their mode alone.
		f.refused = privileges.Refused("look through", path, err, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)
	}
}

// socketInode reads "socket:[123]".
func socketInode(link []byte) (uint32, bool) {
	s, ok := strings.CutPrefix(string(link), "socket:[")
	s, closed := strings.CutSuffix(s, "]")
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), ok && closed && err == nil
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
