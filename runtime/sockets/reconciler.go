package sockets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
)

const (
	// gatherTime is how long changes are gathered: a rollout changes a Service many times, and each look reads all ways back.
	gatherTime = 100 * time.Millisecond
	// interval is how often all sockets are compared with the table, whatever happens.
	interval = 10 * time.Second
	// goneTime is how long a backend must have been gone before sockets are ended for it, or led nowhere: a slice that is
	// deleted and made again ends nothing.
	goneTime = time.Second
	// againTime is when a socket that was not found on a stale backend is looked for once more: it may have been
	// connecting while the table changed.
	againTime = 500 * time.Millisecond
	// lateTime is how long the way back from a backend stays after its socket went elsewhere: for answers on their way.
	lateTime = 10 * time.Second
	// forgetAt is the part of a map, as a divisor, that such ways back may have; more are removed at once.
	forgetAt = 8
	// stayTime is when a socket that its Service led where it was is tried again.
	stayTime = time.Minute
	// boundTime is when one that is bound to a loopback address is: each time it has no peer for an instant.
	boundTime = time.Hour
	// maxTries is how often a socket is tried to be moved or ended before it is left; then at each interval.
	maxTries = 8
	// share is the part of a processor that looks take, at most, unless sockets would stay on dead backends for
	// longer than maxPause.
	share    = 20
	maxPause = 500 * time.Millisecond
	// searchPause is how long sockets are not looked for that were never found, after that was done; longer where it takes
	// longer than a tenth of that: the kernel walks through all sockets of the machine for each network namespace.
	searchPause = 700 * time.Millisecond
	// searchTime bounds a look through all network namespaces and processes.
	searchTime = 10 * time.Second
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
// Set, Begin, Done, SetAPI and Status may be called by any goroutine, and don't wait for the kernel.
type Reconciler struct {
	cfg       Config
	directory *Directory
	wake      chan struct{}
	now       func() time.Time // tests have their own, as the next
	pause     func(took time.Duration) time.Duration

	// Of the goroutine of Run.
	candidates map[target]*candidate
	owners     map[uint64]*owner // where sockets were found, by cookie
	held       map[holder]uint64 // whose they are
	cookies    []uint64          // of UDP sockets with a way back, as the last look found them
	generation uint64
	crew       *crew
	searching  guard
	sweeper    sweeper
	growing    atomic.Bool  // a growth is at work
	growDue    atomic.Int64 // no growth before, after one that failed; nanoseconds of the Unix time
	logged     time.Time
	unlogged   Counts
	restore    []*candidate // whose way back is to be written again
	failed     error        // the last one to end a socket in this look
	everywhere time.Time    // when all processes were looked at
	nextSearch time.Time    // before that no sockets are looked for that were never found
	read       time.Time    // when all ways back were read last; zero: they are to be
	cannotMove error        // no socket can be; nil: some may

	mu     sync.Mutex // guards what follows
	due    time.Time  // of the next look
	all    bool       // it reads all ways back
	status Status
}

// candidate is a socket that the way back names with a backend that it should not be connected to.
type candidate struct {
	target
	frontend   netip.AddrPort
	service    types.NamespacedName
	verdict    Verdict
	generation uint64
	since      time.Time // it was found so

	due     time.Time // when it is to be looked at
	misses  int       // looks that did not find it connected there
	tries   int       // to move or end it that failed
	unmoved bool      // it was tried to be moved, in vain
	settled time.Time // it is not connected there, since then at the latest; zero: it may be
	hung    bool
	left    bool // it is connected there, and nothing could be done
}

// owner is where a socket was found.
type owner struct {
	netns  netns.Namespace
	socket socket
	holder holder // pid 0: none was found
	seen   uint64 // the generation in which the kernel listed it
}

// New makes a Reconciler that works while Run does.
func New(cfg Config) *Reconciler {
	return &Reconciler{
		cfg: cfg, directory: NewDirectory(cfg.TCP), wake: make(chan struct{}, 1),
		cannotMove: cannotMove(&cfg), candidates: map[target]*candidate{}, owners: map[uint64]*owner{}, held: map[holder]uint64{}, crew: newCrew(),
		due: time.Now().Add(interval), now: time.Now, pause: pauseAfter, status: Status{services: map[types.NamespacedName]Counts{}},
	}
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

// Begin says that all that was Set is being written.
func (r *Reconciler) Begin() { r.directory.Begin() }

// Done says how every write went that was begun.
func (r *Reconciler) Done(err error) {
	switch did := r.directory.Done(err); {
	case did.Usable: // some may be waiting
		r.lookIn(0, true)
	case did.Stale:
		r.lookIn(gatherTime, true)
	}
}

// lookIn makes the next look due in a time at the latest. all: it reads all ways back.
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
		r.settle(j)
	}
	due := r.dueNow()
	if len(due) == 0 {
		return r.forget(&m)
	}
	due, err = r.locate(ctx, due)
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

// update brings the candidates up to date: by all ways back, if something was written since they were read or that was
// long ago, else only by what was written.
func (r *Reconciler) update(m *Maps) error {
	r.mu.Lock()
	all := r.all || r.now().Sub(r.read) >= interval
	r.all = false
	r.mu.Unlock()
	r.generation++
	if all {
		r.read = r.now()
		err := r.readAll(m)
		if err != nil {
			r.read = time.Time{}
		}
		return err
	}
	for t, c := range r.candidates {
		if c.hung {
			continue
		}
		if c.verdict, c.service = r.directory.Judge(c.frontend, t.proto, t.backend); c.verdict == Fresh {
			delete(r.candidates, t)
		}
	}
	return nil
}

// readAll brings the candidates up to date by all ways back.
func (r *Reconciler) readAll(m *Maps) error {
	now := r.now()
	verdicts := map[pair]Verdict{} // many sockets have one Service and backend
	judge := func(proto bpf.Proto) func(pair) Verdict {
		clear(verdicts)
		return func(p pair) Verdict {
			v, known := verdicts[p]
			if !known {
				v, _ = r.directory.Judge(netip.AddrPortFrom(p.frontend.Addr(), p.frontendPort.Uint16()), proto, netip.AddrPortFrom(p.backend.Addr(), p.backendPort.Uint16()))
				verdicts[p] = v
			}
			return v
		}
	}
	note := func(t target, frontend netip.AddrPort) { r.note(t, frontend, now) }
	var err error
	r.cookies, err = readUDP(m, judge(bpf.UDP), make([]uint64, 0, len(r.cookies)+256), note) // a search that hangs has the former
	if err == nil && r.cfg.TCP {
		err = readTCP(m, judge(bpf.TCP), note)
	}
	if err != nil {
		return err
	}
	for t, c := range r.candidates {
		if c.generation != r.generation && !c.hung {
			delete(r.candidates, t)
		}
	}
	return nil
}

// note takes a way back that is stale.
func (r *Reconciler) note(t target, frontend netip.AddrPort, now time.Time) {
	verdict, service := r.directory.Judge(frontend, t.proto, t.backend)
	if verdict == Fresh { // since
		return
	}
	c := r.candidates[t]
	if c == nil || c.frontend != frontend {
		if c != nil && c.hung {
			return
		}
		c = &candidate{target: t, since: now}
		r.candidates[t] = c
	}
	c.frontend, c.verdict, c.service, c.generation = frontend, verdict, service, r.generation
}

// wants is what is to be done with a candidate, and from when on. One that waits nowhere is moved or left.
func (r *Reconciler) wants(c *candidate) (move bool, from time.Time) {
	move = c.proto == bpf.UDP && c.verdict != Orphan && r.cannotMove == nil && !c.unmoved
	if c.verdict == Waiting || c.verdict == Stale && move {
		return move, c.since
	}
	return move, c.since.Add(goneTime)
}

// waits reports whether nothing is to be done with a candidate for now, whatever the time.
func (r *Reconciler) waits(c *candidate) bool {
	return c.hung || !c.settled.IsZero() || c.verdict == Waiting && r.cannotMove != nil
}

// dueNow are the candidates that something may be done with now.
func (r *Reconciler) dueNow() (due []*candidate) {
	at := r.now()
	for _, c := range r.candidates {
		if r.waits(c) {
			continue
		}
		if _, from := r.wants(c); !at.Before(from) && !at.Before(c.due) {
			due = append(due, c)
		}
	}
	if len(due) == 0 {
		return nil
	}
	out := map[types.NamespacedName]bool{}
	if r.cfg.Out != nil {
		out = r.cfg.Out()
	}
	return slices.DeleteFunc(due, func(c *candidate) bool { return out[c.service] })
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
	if at.Before(r.nextSearch) {
		for c := range lost {
			c.due = r.nextSearch
		}
		due = slices.DeleteFunc(due, func(c *candidate) bool { return lost[c] })
		clear(lost)
	}
	var err error
	if len(lost) > 0 {
		complete, searchErr := r.search(ctx, lost)
		if ctx.Err() != nil {
			return nil, nil
		}
		err = searchErr
		due = slices.DeleteFunc(due, func(c *candidate) bool {
			o := r.owners[c.cookie]
			if !lost[c] || o != nil && o.socket.remote() == c.backend {
				c.misses = 0
				return false
			}
			r.missed(c, complete || o != nil, at)
			return true
		})
	}
	r.findHolders(ctx, due)
	return due, err
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
		c.settled = at
	}
}

// act moves and ends sockets.
func (r *Reconciler) act(ctx context.Context, due []*candidate) error {
	var attached error
	if r.cfg.Attached != nil {
		attached = r.cfg.Attached()
	}
	var jobs []*job
	for _, c := range due {
		if move, _ := r.wants(c); move && r.owners[c.cookie].holder.pid == 0 && c.verdict != Waiting {
			c.unmoved = true
		}
		move, from := r.wants(c)
		switch {
		case r.now().Before(from):
			c.due = from
		case move && attached != nil: // it would connect to the Service's own address
			c.left, c.due = true, r.now().Add(goneTime)
		case c.verdict == Waiting && r.owners[c.cookie].holder.pid == 0: // it does no harm where it is
			c.left, c.due = true, r.now().Add(interval)
		default:
			jobs = append(jobs, &job{at: c, netns: r.owners[c.cookie].netns.Inode, ends: !move})
		}
	}
	pools, err := r.open(ctx, jobs)
	jobs = slices.DeleteFunc(jobs, func(j *job) bool {
		pool := pools[j.netns]
		if pool == nil { // the namespace is gone, or could not be entered
			r.disown(j.at.cookie)
			j.at.due = r.now().Add(againTime)
			return true
		}
		o := r.owners[j.at.cookie]
		j.do = pool.job(j, j.at.target, j.at.frontend, *o, o.seen == r.generation)
		return false
	})
	for _, j := range r.crew.work(ctx, jobs) {
		j.at.hung = true
	}
	for _, p := range pools {
		p.close()
	}
	for _, j := range jobs {
		if !j.at.hung && ctx.Err() == nil {
			r.settle(j)
		}
	}
	return err
}

// settle takes the result of a job.
func (r *Reconciler) settle(j *job) {
	c, at := j.at, r.now()
	c.left = false
	var stuck errOutOfTime
	switch {
	case j.skipped, errors.As(j.err, &stuck):
		c.left, c.due = true, at.Add(goneTime)
	case j.err == nil && j.ends:
		c.settled = at
		r.count(c, Counts{EndedUDP: one(c.proto == bpf.UDP), EndedTCP: one(c.proto == bpf.TCP)})
	case j.err == nil:
		c.settled = at
		if o := r.owners[c.cookie]; o != nil {
			o.socket = j.socket
		}
		r.count(c, Counts{Moved: 1})
		r.moved()
	case errors.Is(j.err, errNotThere), errors.Is(j.err, errMoved), errors.Is(j.err, errNoCopy):
		if o := r.owners[c.cookie]; o != nil && errors.Is(j.err, errNoCopy) {
			delete(r.held, o.holder)
			o.holder = holder{}
		} else {
			r.disown(c.cookie)
		}
		c.due = at // it is looked for again
		if c.tries++; c.tries >= maxTries {
			c.tries, c.left, c.due = 0, true, at.Add(interval)
		}
		c.unmoved = errors.Is(j.err, errNoCopy) && c.tries > 1 && c.verdict != Waiting
	case errors.Is(j.err, errBound):
		c.due = at.Add(boundTime)
		r.restore = append(r.restore, c)
	case errors.Is(j.err, errStays):
		c.due = at.Add(stayTime)
	case j.ends:
		r.failed = j.err
		c.left, c.due = true, at.Add(interval)
	case c.verdict == Waiting:
		r.refused(j.err)
		c.left, c.due = true, at.Add(interval)
	default:
		r.refused(j.err)
		c.unmoved = true
	}
}

func one(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}

// moved notes that sockets can be moved.
func (r *Reconciler) moved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.MoveError = nil
}

// refused notes why a socket could not be moved.
func (r *Reconciler) refused(err error) {
	if errors.Is(err, ErrCannotMove) {
		r.cannotMove = err
	}
	if !errors.Is(err, ErrCannotMove) && !errors.Is(err, privileges.ErrRefused) {
		r.cfg.Log.Debug("a udp socket was not moved", "err", err)
		return
	}
	r.mu.Lock()
	first := r.status.MoveError == nil
	r.status.MoveError = err
	r.mu.Unlock()
	if first {
		r.cfg.Log.Warn("connected UDP sockets of backends that went are ended, not moved", "err", err)
	}
}

// forget removes ways back of sockets that have been elsewhere for a while.
func (r *Reconciler) forget(m *Maps) error {
	for _, c := range r.restore {
		key := bpf.UDPRevNatKey{Cookie: c.cookie, Backend: bpf.AddressOf(c.backend.Addr()), Port: bpf.PortOf(c.backend.Port())}
		value := bpf.UDPRevNat{Frontend: bpf.AddressOf(c.frontend.Addr()), Port: bpf.PortOf(c.frontend.Port())}
		if err := m.RevNat[0].Put(&key, &value); err != nil {
			return err
		}
	}
	r.restore = nil
	old := r.now().Add(-lateTime)
	if settled := r.settledCount(); len(m.RevNat) > 0 && settled > int(m.RevNat[0].MaxEntries())/forgetAt {
		old = r.now() // room for new ones is worth more
	}
	var keys []bpf.UDPRevNatKey
	for t, c := range r.candidates {
		if t.proto != bpf.UDP || c.settled.IsZero() || c.settled.After(old) || c.hung {
			continue
		}
		if v, _ := r.directory.Judge(c.frontend, t.proto, t.backend); v == Fresh {
			continue
		}
		keys = append(keys, bpf.UDPRevNatKey{Cookie: t.cookie, Backend: bpf.AddressOf(t.backend.Addr()), Port: bpf.PortOf(t.backend.Port())})
		delete(r.candidates, t)
	}
	for _, rev := range m.RevNat {
		if _, err := remove(rev, m.Batch, keys); err != nil {
			return err
		}
	}
	return nil
}

// settledCount is how many ways back are of no use but for late answers.
func (r *Reconciler) settledCount() (n int) {
	for _, c := range r.candidates {
		if !c.settled.IsZero() {
			n++
		}
	}
	return n
}

// plan says when the next look is due, if before the interval.
func (r *Reconciler) plan() {
	next := time.Time{}
	for _, c := range r.candidates {
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
}

// disown forgets where a socket was found.
func (r *Reconciler) disown(cookie uint64) {
	if o := r.owners[cookie]; o != nil {
		delete(r.held, o.holder)
		delete(r.owners, cookie)
	}
}
