package sockets

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/runtime/netns"
)

const (
	// quickTime bounds how long the processes of one network namespace are looked through while sockets of others wait, and
	// quickTotal those of all. Who needs longer is looked for beside the looks (seek): a tenant may have as many
	// processes and descriptors as it likes.
	quickTime, quickTotal = 200 * time.Millisecond, time.Second
	// seekTime bounds that, and seekShare, a divisor, what one network namespace may have of it.
	seekTime  = 10 * time.Second
	seekShare = 5
)

// finder looks for who holds sockets.
type finder struct {
	proc string
	// held are the descriptors that are known already, and read again only if sockets are still wanted after all others:
	// the number of one that was closed is used again.
	held map[holder]uint64
	// wanted are sockets by the inode of their file.
	wanted map[uint32]uint64
	found  func(cookie uint64, h holder)
	// refused is why processes could not be looked at; nil: all could.
	refused error
	until   time.Time // when to end; zero: never
	ended   bool      // it had to
}

// look goes through processes until all wanted sockets are found.
func (f *finder) look(ctx context.Context, pids []int) {
	f.ended = false
	for _, known := range []bool{false, true} {
		if known && len(f.held) == 0 {
			return
		}
		for _, pid := range pids {
			if len(f.wanted) == 0 || f.ended || ctx.Err() != nil {
				return
			}
			f.process(pid, known)
		}
	}
}

// process looks through those descriptors of a process that are known, or not.
func (f *finder) process(pid int, known bool) {
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
			if f.ended = !f.until.IsZero() && !time.Now().Before(f.until); f.ended {
				return
			}
			fd, _ := strconv.Atoi(name)
			h := holder{pid, fd}
			if _, is := f.held[h]; is != known {
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

// needsHolder reports whether a candidate's socket could be moved if it were known who holds it, and that is worth a look.
func (r *Reconciler) needsHolder(c *candidate, at time.Time) bool {
	o := r.owners[c.cookie]
	move, _ := r.wants(c)
	return move && o.holder.pid == 0 && o.socket.Inode != 0 && at.Sub(o.sought) >= interval
}

// findHolders looks for who holds those sockets of candidates that may be moved, among the processes of their network
// namespaces; and, while at it, all others there that may have to be moved one day. It returns the candidates without
// those of which that is not known yet.
func (r *Reconciler) findHolders(ctx context.Context, due []*candidate) []*candidate {
	at := r.now()
	need := map[uint64]map[uint64]*owner{} // by network namespace and cookie
	for _, c := range due {
		if o := r.owners[c.cookie]; r.needsHolder(c, at) {
			if need[o.netns.Inode] == nil {
				need[o.netns.Inode] = map[uint64]*owner{}
			}
			need[o.netns.Inode][c.cookie] = o
		}
	}
	if len(need) == 0 {
		return due
	}
	where := r.cfg.Namespaces
	where.EveryPid = true
	list, err := where.List()
	if !errors.Is(err, privileges.ErrRefused) {
		err = nil
	}
	r.seekQuickly(ctx, list, need)
	r.seek(ctx, list, need, err)
	return slices.DeleteFunc(due, func(c *candidate) bool {
		o := r.owners[c.cookie]
		if !r.needsHolder(c, at) {
			return false
		}
		if at.Sub(o.needed) >= seekTime {
			o.sought, o.needed = at, time.Time{}
			return false
		}
		c.left, c.due = true, at.Add(againTime)
		return true
	})
}

// seekQuickly looks for holders in the network namespaces of their sockets, once.
func (r *Reconciler) seekQuickly(ctx context.Context, list []netns.Namespace, need map[uint64]map[uint64]*owner) {
	began := time.Now()
	pids := map[uint64][]int{}
	for _, n := range list {
		pids[n.Inode] = n.Pids
	}
	wanted := r.wantedIn(need)
	for inode, owners := range need {
		if at, is := r.slow[inode]; is && r.now().Sub(at) >= interval {
			delete(r.slow, inode)
		}
		anew := false
		for _, o := range owners {
			if o.needed.IsZero() {
				o.needed, anew = r.now(), true
			}
		}
		if _, slow := r.slow[inode]; slow || !anew || time.Since(began) >= quickTotal {
			continue
		}
		look := finder{proc: procOf(r.cfg.Namespaces), held: r.held, wanted: wanted[inode], found: r.hold, until: time.Now().Add(r.quickTime)}
		if look.look(ctx, pids[inode]); look.ended {
			r.slow[inode] = r.now()
		}
	}
}

// wantedIn are the sockets of some network namespaces whose holders are not known, by the inode of their file.
func (r *Reconciler) wantedIn(need map[uint64]map[uint64]*owner) map[uint64]map[uint32]uint64 {
	wanted := map[uint64]map[uint32]uint64{}
	for cookie, o := range r.owners {
		if need[o.netns.Inode] == nil || o.holder.pid != 0 || o.socket.Inode == 0 || r.now().Sub(o.sought) < interval {
			continue
		}
		if wanted[o.netns.Inode] == nil {
			wanted[o.netns.Inode] = map[uint32]uint64{}
		}
		wanted[o.netns.Inode][o.socket.Inode] = cookie
	}
	return wanted
}

// hold takes note of who holds a socket.
func (r *Reconciler) hold(cookie uint64, h holder) {
	if o := r.owners[cookie]; o != nil {
		o.holder, o.needed, r.held[h] = h, time.Time{}, cookie
	}
}

// held is what was found beside the looks.
type held struct {
	by      map[uint64]holder // sockets by cookie
	unheld  []uint64          // those that were not found
	refused error             // why not all processes could be looked at
}

// seek looks for holders beside the looks: first among the processes of their sockets' network namespaces, then among
// all, as a socket may be of another network namespace than its process.
func (r *Reconciler) seek(ctx context.Context, list []netns.Namespace, need map[uint64]map[uint64]*owner, refused error) {
	wanted := map[uint32]uint64{}
	for _, owners := range need {
		for cookie, o := range owners {
			if o.holder.pid == 0 {
				wanted[o.socket.Inode] = cookie
			}
		}
	}
	if len(wanted) == 0 || r.seeking.underWay() || r.now().Before(r.nextSeek) {
		return
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b netns.Namespace) int { return len(need[b.Inode]) - len(need[a.Inode]) })
	proc, until := procOf(r.cfg.Namespaces), time.Now().Add(seekTime)
	got, done, _ := r.seeking.run(r.patience, func() held {
		h := held{by: map[uint64]holder{}}
		look := finder{proc: proc, wanted: wanted, found: func(cookie uint64, by holder) { h.by[cookie] = by }, refused: refused}
		for _, n := range list {
			if look.until = time.Now().Add(seekTime / seekShare); look.until.After(until) {
				look.until = until
			}
			look.look(ctx, n.Pids)
		}
		h.unheld, h.refused = slices.Collect(maps.Values(wanted)), look.refused
		return h
	})
	if done {
		r.took(got)
	}
}

// takeHolders takes what a search beside the looks has found.
func (r *Reconciler) takeHolders() {
	if got, done := r.seeking.take(); done {
		r.took(got)
	}
}

// took takes the result of seek.
func (r *Reconciler) took(got held) {
	at := r.now()
	r.nextSeek = at.Add(min(r.pause(r.seeking.took()), seekTime))
	for cookie, h := range got.by {
		r.hold(cookie, h)
	}
	for _, cookie := range got.unheld {
		if o := r.owners[cookie]; o != nil {
			o.sought, o.needed = at, time.Time{}
		}
	}
	if len(got.unheld) == 0 {
		return
	}
	if got.refused == nil {
		got.refused = mayLook()
	}
	if got.refused != nil {
		r.refused(got.refused)
	}
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
