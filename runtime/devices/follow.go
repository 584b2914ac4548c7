package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

const (
	// settle is how long changes are gathered: a device that comes brings several.
	settle = 100 * time.Millisecond
	// reread is how often everything is read though nothing seems to have changed.
	reread = time.Minute
	// retry is when to try again after an error.
	retry = time.Second
	// share bounds what reading costs: it takes at most one part in so many of the time. A hundred thousand routes that
	// change all the time are read every few seconds.
	share = 50
	// maxPause bounds that pause: where the processors are busy, all takes long.
	maxPause = 30 * time.Second
)

// Config is what a Follower needs.
type Config struct {
	Log   *slog.Logger
	Names Names
	// Netns is the file of the network namespace that is followed. "" is that of the process.
	Netns string
}

// Follower follows the uplinks of a network namespace while Run runs. Its methods are safe for concurrent use; Run is
// called once.
type Follower struct {
	cfg   Config
	wake  chan struct{} // peers or nodes have changed
	mu    sync.Mutex    // guards peers and nodes
	peers Peers
	nodes map[string][]netip.Addr // of SetNode
}

// New makes a Follower.
func New(cfg Config) *Follower {
	return &Follower{cfg: cfg, wake: make(chan struct{}, 1), nodes: map[string][]netip.Addr{}}
}

// SetPeers says what the cluster has besides this node. The slices must not change afterwards. It does not wait.
func (f *Follower) SetPeers(p Peers) {
	f.mu.Lock()
	f.peers = p
	f.mu.Unlock()
	f.notify()
}

// SetNode says which addresses another node has, in addition to those of SetPeers; none: it is gone. The slice must not
// change afterwards. It does not wait, and costs the same however many nodes there are.
func (f *Follower) SetNode(name string, addrs []netip.Addr) {
	f.mu.Lock()
	if len(addrs) > 0 {
		f.nodes[name] = addrs
	} else {
		delete(f.nodes, name)
	}
	f.mu.Unlock()
	f.notify()
}

// allPeers are those of SetPeers and SetNode.
func (f *Follower) allPeers() Peers {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.peers
	p.Nodes = slices.Clone(p.Nodes)
	for _, addrs := range f.nodes {
		p.Nodes = append(p.Nodes, addrs...)
	}
	return p
}

func (f *Follower) notify() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run calls handle with the uplinks and with what is left out, and again whenever they differ, until ctx ends. It calls
// handle from one goroutine: first when everything has been read, then about a tenth of a second after a change. What
// takes long to read or to judge, as a hundred thousand routes do, is done less often. It returns an error only where a
// pattern of names is malformed: what can't be read is logged, and tried again.
func (f *Follower) Run(ctx context.Context, handle func([]Uplink, []Left)) error {
	if err := f.cfg.Names.Validate(); err != nil {
		return err
	}
	failed := ""
	for ctx.Err() == nil {
		s, err := f.open()
		if err != nil {
			if failed != err.Error() { // once
				failed = err.Error()
				f.cfg.Log.Error("cannot follow the network devices", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(retry):
			}
			continue
		}
		f.follow(ctx, s, handle)
	}
	return nil
}

// sockets are those that a Follower needs. They stay in their namespace, whichever thread uses them.
type sockets struct {
	reader        *reader
	links, routes *subscription
}

func (s *sockets) close() {
	if s.reader != nil {
		s.reader.close()
	}
	for _, sub := range []*subscription{s.links, s.routes} {
		if sub != nil {
			sub.close()
		}
	}
}

func (f *Follower) open() (*sockets, error) {
	s := &sockets{}
	err := f.inNetns(func() (err error) {
		if s.reader, err = newReader(); err != nil {
			return err
		}
		s.links, err = subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
		if err != nil {
			return err
		}
		s.routes, err = subscribe(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, groupNexthop)
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (f *Follower) inNetns(fn func() error) error {
	if f.cfg.Netns == "" {
		return fn()
	}
	return ns.Do(func() error {
		fd, err := unix.Open(f.cfg.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", f.cfg.Netns, err)
		}
		defer unix.Close(fd)
		if err := ns.Enter(fd, f.cfg.Netns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

// follow reads and tells until ctx ends.
func (f *Follower) follow(ctx context.Context, s *sockets, handle func([]Uplink, []Left)) {
	ctx, cancel := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer s.close()
	defer cancel()
	watchers.Go(func() { s.links.watch(ctx) })
	watchers.Go(func() { s.routes.watch(ctx) })

	l := looker{Follower: f, sockets: s, handle: handle}
	l.links.mark(time.Now(), 0)
	timer, again := time.NewTimer(0), time.NewTicker(reread)
	defer timer.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.links.events:
			l.links.waiting = true
			l.links.mark(time.Now(), settle)
		case <-s.routes.events:
			l.routes.waiting = true
			l.routes.mark(time.Now(), settle)
		case <-f.wake:
			l.choice.mark(time.Now(), settle)
		case <-again.C:
			l.links.mark(time.Now(), 0) // and then the routes
		case <-timer.C:
		}
		timer.Reset(l.look(time.Now()))
	}
}

// part is a part of the work, with a pace of its own.
type part struct {
	dirty   bool
	waiting bool      // its subscription waits to be drained
	due     time.Time // when it is to be done, if dirty
	ready   time.Time // not to be done before
	failed  string    // the error that was logged last
}

// mark has the part done after a while.
func (p *part) mark(now time.Time, after time.Duration) {
	due := now.Add(after)
	if due.Before(p.ready) {
		due = p.ready
	}
	if !p.dirty || due.Before(p.due) {
		p.dirty, p.due = true, due
	}
}

// isDue tells whether the part is to be done now.
func (p *part) isDue(now time.Time) bool { return p.dirty && !now.Before(p.due) }

// begin is called before the part is done, and end afterwards.
func (p *part) begin(s *subscription) {
	if p.waiting {
		s.drain()
	}
	p.dirty, p.waiting = false, false
}

func (p *part) end(began time.Time, err error) {
	now := time.Now()
	p.ready = now.Add(min(share*now.Sub(began), maxPause))
	if err != nil {
		p.mark(now, retry)
	}
}

// looker is what Run remembers.
type looker struct {
	*Follower
	*sockets
	handle func([]Uplink, []Left)

	links, routes, choice part

	state          State
	tables         []uint32 // for the next reading of routes
	read, complete bool     // routes were read; none were missing
	told           bool
	uplinks        []Uplink
	left           []Left
}

// look does what is due, and returns how long there is nothing to do.
func (l *looker) look(now time.Time) time.Duration {
	if l.links.isDue(now) {
		l.report(&l.links, l.readLinks())
	}
	if l.routes.isDue(time.Now()) && l.state.Links != nil {
		l.report(&l.routes, l.readRoutes())
	}
	if l.choice.isDue(time.Now()) && l.read {
		l.tell()
	}
	next := reread
	wait := func(p *part, possible bool) {
		if p.dirty && possible {
			next = min(next, time.Until(p.due))
		}
	}
	wait(&l.links, true)
	wait(&l.routes, l.state.Links != nil)
	wait(&l.choice, l.read)
	return max(next, 0)
}

// readLinks reads links, addresses and rules. A device that goes takes its routes along silently, so these are next.
func (l *looker) readLinks() (err error) {
	defer func(began time.Time) { l.links.end(began, err) }(time.Now())
	l.links.begin(l.sockets.links)
	links, err := l.reader.links()
	if err != nil {
		return err
	}
	addrs, err := l.reader.addrs()
	if err != nil {
		return err
	}
	tables, err := l.reader.tables(links)
	if err != nil {
		return err
	}
	l.state.Links, l.state.Addrs, l.tables = links, addrs, tables
	l.routes.mark(time.Now(), 0)
	l.choice.mark(time.Now(), 0)
	return nil
}

// readRoutes reads routes. What lacks some, as every try was disturbed, is better than nothing, but no better than what
// was complete.
func (l *looker) readRoutes() (err error) {
	defer func(began time.Time) { l.routes.end(began, err) }(time.Now())
	l.routes.begin(l.sockets.routes)
	routes, err := l.reader.routes(l.tables, len(l.state.Routes))
	if err != nil && (l.complete || !errors.Is(err, errUnstable)) {
		return err
	}
	l.state.Routes, l.state.Tables, l.read, l.complete = routes, l.tables, true, err == nil
	l.choice.mark(time.Now(), 0)
	return err
}

// report logs an error once.
func (l *looker) report(p *part, err error) {
	switch {
	case err == nil:
		p.failed = ""
	case err.Error() != p.failed:
		p.failed = err.Error()
		l.cfg.Log.Warn("cannot read all of the network devices and routes; the last known ones stay", "err", err)
	}
}

// tell chooses, and calls handle if the result differs.
func (l *looker) tell() {
	l.choice.begin(nil)
	began := time.Now()
	l.state.Peers = l.allPeers()
	l.state.Names = l.cfg.Names
	uplinks, left := Choose(l.state)
	l.choice.end(began, nil)
	if l.told && slices.EqualFunc(uplinks, l.uplinks, Uplink.equal) && slices.Equal(left, l.left) {
		return
	}
	for _, u := range uplinks {
		if u.Omitted > 0 {
			l.cfg.Log.Warn("too many source addresses by destination; shorter prefixes stand for the rest", "device", u.Name, "omitted", u.Omitted)
		}
	}
	l.told, l.uplinks, l.left = true, uplinks, left
	l.handle(slices.Clone(uplinks), slices.Clone(left))
}

func (u Uplink) equal(v Uplink) bool {
	return u.Name == v.Name && u.Index == v.Index && u.L3 == v.L3 && u.Why == v.Why && u.Omitted == v.Omitted && slices.Equal(u.Sources, v.Sources)
}
