package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// Store is a table that tells whether another writer allocated anything.
type Store interface {
	nat.Store
	// Generation is the highest set id that was ever given out.
	Generation() (uint64, error)
	// ResetCounters makes indexes count from zero, for their new services.
	ResetCounters(indexes []uint32) error
}

// Config is what a Writer needs.
type Config struct {
	Store Store
	// Lock takes the table's lock, which writers hold; the returned function releases it.
	Lock func(context.Context) (release func() error, err error)
	Log  *slog.Logger
	// Room is called when there is reason to flush again, by a goroutine of the
	// Writer's: what was Held can be written, or a table that had no room for some
	// Services has some. It may not wait for the Writer.
	Room func()
}

// Writer writes one table. Its methods may be called by any goroutine.
type Writer struct {
	cfg Config

	// work is held by who writes the table or waits for its lock, which takes as long as it takes; mu, taken after it,
	// for the time of a thought: to tell the Writer something, or to ask it, is to wait for no system call.
	work sync.Mutex

	mu      sync.Mutex
	ports   map[services.PortKey]*port
	dirty   map[services.PortKey]bool
	gone    []uint32           // indexes of ports that are not wanted any more
	order   []services.PortKey // all ports as reload has sorted them, until the next plan; nil: none
	fresh   []uint32           // indexes that the next plan gives to ports
	ranges  *serviceRange
	planner *nat.Planner
	noted   uint64 // the table's generation as this writer left it
	status  Status
	writes  uint64          // plans that were begun to be carried out
	writing bool            // one of them isn't yet
	held    bool            // something waits until no program uses frontends that went
	out     int             // ports that are not as they should be
	full    [shortParts]int // of them, those that found no capacity, by what they lack

	retiring *retiring
}

// port is one that is wanted.
type port struct {
	svc   nat.Service
	index uint32 // 0: it isn't in the table
	err   error  // why it isn't, or isn't as it should be
}

// New makes a Writer. Close ends it.
func New(cfg Config) *Writer {
	w := &Writer{cfg: cfg, ports: map[services.PortKey]*port{}, dirty: map[services.PortKey]bool{}}
	w.retiring = newRetiring(cfg.Store, cfg.Log, w.freed)
	return w
}

// Close waits until what was replaced is removed.
func (w *Writer) Close() { w.retiring.close() }

// Set says what a Service's ports were and shall be. Nothing is written yet.
func (w *Writer) Set(before, after []services.Port) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var stays map[services.PortKey]bool
	if len(before) > 0 {
		stays = make(map[services.PortKey]bool, len(after))
	}
	for i := range after {
		key := after[i].Key
		if stays != nil {
			stays[key] = true
		}
		p := w.ports[key]
		if p == nil {
			p = &port{}
			w.ports[key] = p
		}
		p.svc = after[i].Service
		w.dirty[key] = true
	}
	for i := range before {
		key := before[i].Key
		p := w.ports[key]
		if stays[key] || p == nil {
			continue
		}
		if p.index != 0 {
			w.gone = append(w.gone, p.index)
		}
		w.setErr(p, nil)
		delete(w.ports, key)
		delete(w.dirty, key)
	}
}

// SetStore makes the Writer write to another store, which holds the same.
func (w *Writer) SetStore(store Store) {
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cfg.Store = store
	w.planner = nil
	w.retiring.setStore(store)
}

// Flush writes what was Set and isn't written, but for what is Held. What can't be written, for lack
// of room or because it makes no sense, is told by Status and logged once; the
// rest is. After an error the table is as it was, and the next flush tries all
// of it again.
func (w *Writer) Flush(ctx context.Context) error {
	w.work.Lock()
	defer w.work.Unlock()
	return w.locked(ctx, func() error {
		if err := w.current(); err != nil {
			return err
		}
		return w.write()
	})
}

// Redirect leads what the table has for an address to other backends, before
// anything was Set: for the API service, on which everything else waits. Each
// family gets the backends of its own, if there are any. After the first Flush
// it does nothing.
func (w *Writer) Redirect(ctx context.Context, frontends, backends []netip.AddrPort) error {
	w.work.Lock()
	defer w.work.Unlock()
	if w.adopted() {
		return nil
	}
	return w.locked(ctx, func() error {
		state, err := w.cfg.Store.Read()
		if err != nil {
			return err
		}
		p := nat.NewPlanner(state, nat.InitIndexes)
		for _, f := range frontends {
			fe, there := state.Frontends[bpf.FrontendKeyOf(f, bpf.TCP)]
			of := slices.DeleteFunc(slices.Clone(backends), func(b netip.AddrPort) bool { return b.Addr().Is4() != f.Addr().Is4() })
			if !there || len(of) == 0 {
				continue
			}
			if err := p.Replace(fe.Index, of); err != nil {
				return err
			}
		}
		plan := p.Take()
		if plan.Empty() {
			return nil
		}
		applied, err := nat.Apply(w.cfg.Store, plan)
		if err != nil {
			return err
		}
		return applied.Commit()
	})
}

// locked runs do with the table's lock.
func (w *Writer) locked(ctx context.Context, do func() error) error {
	release, err := w.cfg.Lock(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(), release())
}

// current makes sure that the planner knows the table, which the init stage may have written to.
func (w *Writer) current() error {
	generation, err := w.cfg.Store.Generation()
	if err != nil {
		return err
	}
	if w.knows(generation) {
		return nil
	}
	w.retiring.drain() // the next planner doesn't know what the former ones still remove
	state, err := w.cfg.Store.Read()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reload(state)
	return nil
}

// knows reports whether the planner has the table as it is at a generation.
func (w *Writer) knows(generation uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.planner != nil && generation == w.noted
}

func (w *Writer) adopted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status.Adopted
}

// reload starts from what the table holds: which index each port has there is told by its frontends.
func (w *Writer) reload(state *nat.State) {
	w.planner = nat.NewPlanner(state, nat.RuntimeIndexes)
	w.noted = state.Generation
	w.status.Reloads++
	w.gone = nil
	w.ranges.again()
	w.planner.Expect(len(w.ports))
	w.order = w.sorted()
	for _, key := range w.order {
		w.ports[key].index = 0
		w.dirty[key] = true
	}
	claimed := w.claim(state)
	for _, index := range state.Indexes() {
		if nat.RuntimeIndexes.Contains(index) && !claimed[index] {
			w.gone = append(w.gone, index)
		}
	}
}

// claim gives ports the indexes that they have in the table. The words of an
// index change before the frontends that lead there, so a port that took
// another's index would for a moment have the other's clients: a port has an
// index by its cluster IP, which is nobody else's, and by another frontend
// (a node port may have been another Service's until now) only if no other port
// wants any of those that the index has.
func (w *Writer) claim(state *nat.State) (claimed map[uint32]bool) {
	claimed = make(map[uint32]bool, len(w.ports))
	take := func(p *port, index uint32) {
		if nat.RuntimeIndexes.Contains(index) && !claimed[index] {
			p.index, claimed[index] = index, true
		}
	}
	var rest []*port
	for _, key := range w.order {
		p := w.ports[key]
		for _, k := range p.svc.Frontends {
			if fe, there := state.Frontends[k]; there && p.index == 0 && slices.Contains(p.svc.VIPs, k.Addr.Addr()) {
				take(p, fe.Index)
			}
		}
		if p.index == 0 {
			rest = append(rest, p)
		}
	}
	left := slices.ContainsFunc(state.Indexes(), func(index uint32) bool { return nat.RuntimeIndexes.Contains(index) && !claimed[index] })
	if len(rest) == 0 || !left {
		return claimed
	}
	wanted := map[bpf.FrontendKey]*port{}
	for _, p := range w.ports {
		for _, k := range p.svc.Frontends {
			wanted[k] = p
		}
	}
	shared := map[uint32]*port{} // by index: the one that wants all that is wanted of its frontends; nil: there are several
	for k, fe := range state.Frontends {
		by := wanted[k]
		if by == nil {
			continue
		}
		if other, seen := shared[fe.Index]; seen && other != by {
			by = nil
		}
		shared[fe.Index] = by
	}
	for _, p := range rest {
		for _, k := range p.svc.Frontends {
			if fe, there := state.Frontends[k]; there && p.index == 0 && shared[fe.Index] == p {
				take(p, fe.Index)
			}
		}
	}
	return claimed
}

// sorted are the wanted ports, that of the API service first: it has room before all others.
func (w *Writer) sorted() []services.PortKey {
	keys := make([]services.PortKey, 0, len(w.ports))
	for key := range w.ports {
		keys = append(keys, key)
	}
	return sortKeys(keys)
}

func sortKeys(keys []services.PortKey) []services.PortKey {
	slices.SortFunc(keys, func(a, b services.PortKey) int {
		if isAPI := a.Service == services.APIService; isAPI != (b.Service == services.APIService) {
			if isAPI {
				return -1
			}
			return 1
		}
		return a.Compare(b)
	})
	return keys
}

// write plans what is dirty or gone, and carries it out.
func (w *Writer) write() error {
	w.retiring.limit(w.backlog())
	plan, fresh := w.plan()
	if plan == nil {
		return nil
	}
	if len(fresh) > 0 {
		if err := w.cfg.Store.ResetCounters(fresh); err != nil {
			w.cfg.Log.Warn("Services count on from others' numbers", "services", len(fresh), "err", err)
		}
	}
	w.retiring.waitFor(plan)
	applied, err := nat.Apply(w.cfg.Store, plan)
	if err != nil {
		err = fmt.Errorf("write the table: %w", err)
	} else if takesOver(plan) {
		if err = applied.Commit(); err != nil {
			err = fmt.Errorf("take over what the init stage wrote: %w", err)
		}
	}
	w.wrote(plan, err)
	return err
}

// leastBacklog is what may always be waiting to be removed: small tables are given more room.
const leastBacklog = 1024

// backlog is how many backends may be waiting to be removed before a write has to wait for that too. When changes come
// faster than grace periods end, Services would else find no room that have as much as they had.
func (w *Writer) backlog() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(leastBacklog, w.planner.State().Room.Backends/4)
}

// wrote takes note of how a plan went.
func (w *Writer) wrote(plan *nat.Plan, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = false
	if err != nil {
		w.planner = nil // what the table holds is to be read again
		return
	}
	w.noted = max(w.noted, plan.Generation)
	w.status.Adopted = true
	w.status.Flushes++
	if takesOver(plan) {
		w.planner.Freed(plan)
		return
	}
	w.retiring.add(plan, w.planner)
}
