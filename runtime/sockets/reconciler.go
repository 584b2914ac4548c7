package sockets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
)

const (
	// gatherTime is how long changes are gathered: a rollout changes a Service many times, and each look reads all ways back.
	gatherTime = 100 * time.Millisecond
	// interval is how often all sockets are compared with the table, whatever happens.
	interval = 10 * time.Second
	// share is the part of a processor that looks take, at most, unless sockets would stay on dead backends for
	// longer than maxPause.
	share    = 20
	maxPause = 500 * time.Millisecond
	// logInterval is how often what was done is logged.
	logInterval = 10 * time.Second
)

// Config is what a Reconciler needs.
type Config struct {
	Log *slog.Logger
	// Maps gives the maps to read; it is called for each look, as they are exchanged when they grow.
	Maps func() (Maps, error)
	// Namespaces says where network namespaces and processes are found.
	Namespaces netns.Config
	// TCP: connections over TCP are ended too when their Service does not have their backend any more, not left to their
	// own timeouts.
	TCP bool
	// Attached says why no programs are attached, nil: they are. A socket that connects without them is not led anywhere.
	Attached func() error
	// Out are the Services that are not in the table as they are wanted: their sockets stay as they are. nil: none.
	Out func() map[types.NamespacedName]bool
	// Grow makes maps larger of which living sockets take more than three quarters; nil: nobody does.
	Grow func(context.Context, ...bpf.MapName) error
	// Forbid keeps sockets from being moved, as on a kernel that can't.
	Forbid bool
}

// Reconciler compares the sockets that were led to backends with what their Services have, and moves or ends those that
// are where they should not be.
//
// Set, SetRange, Begin, Done, SetAPI and Status may be called by any goroutine, and don't wait for the kernel.
type Reconciler struct {
	cfg       Config
	directory *Directory
	wake      chan struct{}
	now       func() time.Time // tests have their own, as the next
	pause     func(took time.Duration) time.Duration

	// Of the goroutine of Run.
	candidates map[target]*candidate
	active     map[*candidate]struct{} // those of them with which something may have to be done
	late       []*candidate            // the others of UDP, in the order in which they got so, and some that are none any more
	owners     map[uint64]*owner       // where sockets were found, by cookie
	held       map[holder]uint64       // whose they are
	index      index
	followed   []*ebpf.Map // the maps of ways back that it is of
	generation uint64
	crew       *crew
	searching  errand[found]
	lost       map[*candidate]bool // that it is for
	seeking    errand[held]        // of holders
	nextSeek   time.Time
	slow       map[uint64]time.Time // network namespaces whose processes took too long to look through, and when
	patience   time.Duration        // tests have their own, as the next
	quickTime  time.Duration
	sweeper    sweeper
	growing    atomic.Bool // a growth is at work
	logged     time.Time
	unlogged   Counts
	restore    []*candidate // whose way back is to be written again
	failed     error        // the last one to end a socket in this look
	nextSearch time.Time    // before that no sockets are looked for that were never found
	read       time.Time    // when all ways back were read last; zero: they are to be
	cannotMove error        // no socket can be; nil: some may

	mu      sync.Mutex // guards what follows
	due     time.Time  // of the next look
	all     bool       // something was written since the last one
	growDue time.Time  // no growth before, after one that failed
	status  Status
}

// New makes a Reconciler that works while Run does.
func New(cfg Config) *Reconciler {
	r := &Reconciler{
		cfg: cfg, directory: NewDirectory(cfg.TCP), wake: make(chan struct{}, 1),
		cannotMove: cannotMove(&cfg), candidates: map[target]*candidate{}, index: index{}, active: map[*candidate]struct{}{}, owners: map[uint64]*owner{}, held: map[holder]uint64{}, crew: newCrew(),
		slow: map[uint64]time.Time{}, patience: patience, quickTime: quickTime,
		due: time.Now().Add(interval), now: time.Now, pause: pauseAfter, status: Status{services: map[types.NamespacedName]Counts{}},
	}
	r.crew.back = func() { r.lookIn(0, false) }
	return r
}

// cannotMove says why no socket can be moved, nil: some may.
func cannotMove(cfg *Config) error {
	if cfg.Forbid {
		return fmt.Errorf("%w: forbidden", ErrCannotMove)
	}
	return sameProcesses(procOf(cfg.Namespaces))
}

// Set says what a Service should have from now on.
func (r *Reconciler) Set(service types.NamespacedName, ports []services.Port) {
	r.directory.Set(service, ports)
}

// SetAPI gives the addresses of the API service, whose connections are not judged.
func (r *Reconciler) SetAPI(addrs []netip.AddrPort) { r.directory.SetAPI(addrs) }

// SetRange gives the addresses of Services, as Set gives a Service.
func (r *Reconciler) SetRange(ranges []netip.Prefix) { r.directory.SetRange(ranges) }

// Begin says that all that was Set is being written.
func (r *Reconciler) Begin() { r.directory.Begin() }

// Directory is what it compares sockets with.
func (r *Reconciler) Directory() *Directory { return r.directory }

// Done says how every write went that was begun, and returns what that did.
func (r *Reconciler) Done(err error) Effect {
	did := r.directory.Done(err)
	switch {
	case did.Usable: // some may be waiting
		r.lookIn(0, true)
	case did.Stale:
		r.lookIn(gatherTime, true)
	}
	return did
}

// lookIn makes the next look due in a time at the latest. all: it compares all ways back.
func (r *Reconciler) lookIn(wait time.Duration, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = r.all || all
	if due := r.now().Add(wait); due.Before(r.due) {
		r.due = due
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// Run works until the context ends, and returns nil then. Nothing that an application does keeps it from that.
func (r *Reconciler) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	earliest := r.now() // of the next look
	for {
		now := r.now()
		r.mu.Lock()
		due := r.due
		r.mu.Unlock()
		if due.Before(earliest) {
			due = earliest
		}
		if next := r.sweeper.next(); next.Before(due) && now.Before(due) {
			if !now.Before(next) {
				r.sweep(ctx)
				continue
			}
			due = next
		}
		if !now.Before(due) {
			r.look(ctx)
			earliest = r.now().Add(min(share*r.now().Sub(now), maxPause))
			continue
		}
		timer.Reset(due.Sub(now))
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// look compares all sockets with the table, and moves and ends what is due.
func (r *Reconciler) look(ctx context.Context) {
	r.mu.Lock()
	r.due = r.now().Add(interval)
	r.mu.Unlock()
	began := r.now()
	err := r.reconcile(ctx)
	if ctx.Err() != nil {
		return
	}
	r.plan()
	r.report(err, r.now().Sub(began))
}

// reconcile is a look without the plan for the next one.
func (r *Reconciler) reconcile(ctx context.Context) error {
	if !r.directory.Ready() {
		return nil
	}
	m, err := r.cfg.Maps()
	if err == nil {
		err = r.update(&m)
	}
	if err != nil {
		return err
	}
	for _, j := range r.crew.returned() {
		j.at.hung = false
		r.finish(j)
	}
	err = r.takeSearch()
	r.takeHolders()
	due := r.dueNow()
	if len(due) == 0 {
		return errors.Join(err, r.forget(&m))
	}
	due, locateErr := r.locate(ctx, due)
	err = errors.Join(err, locateErr)
	if ctx.Err() == nil && len(due) > 0 {
		r.failed = nil
		err = errors.Join(err, r.act(ctx, due))
		err = errors.Join(err, r.failed)
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, r.forget(&m))
}

// plan says when the next look is due, if before the interval.
func (r *Reconciler) plan() {
	next := time.Time{}
	for c := range r.active {
		if r.waits(c) {
			continue
		}
		_, at := r.wants(c)
		if c.due.After(at) {
			at = c.due
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if !next.IsZero() {
		r.lookIn(next.Sub(r.now()), false)
	}
	if r.searching.underWay() || r.seeking.underWay() {
		r.lookIn(againTime, false)
	}
}
