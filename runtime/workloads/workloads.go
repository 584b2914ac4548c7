package workloads

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/hostproc"
	"github.com/firsthop/firsthop/runtime/netns"
)

const (
	// DefaultRescan is how often namespaces are looked for though no pod
	// changed: containers that are no pods come and go silently.
	DefaultRescan = 30 * time.Second

	// gatherTime is how long a change waits for more: pods come in batches.
	gatherTime = 30 * time.Millisecond
	// A pod's address may be in the API before its namespace can be seen, as
	// where its first process has yet to start. 100 ms, 200 ms … 6.4 s: 12.7 s in all.
	firstRetry, maxRetries = 100 * time.Millisecond, 7
	// keepTime is how long a pod that is still there keeps its entry though its
	// namespace isn't seen: one that only has processes is out of sight while the
	// kubelet waits to start its container again, for five minutes at most.
	keepTime = 6 * time.Minute
	// writeRetry is when to try again to reach a store that failed.
	writeRetry = 2 * time.Second
)

// Config is what a Reconciler needs to know.
type Config struct {
	Log *slog.Logger
	// Store is what it keeps up to date. It has no other writer.
	Store Store
	// Namespaces says where network namespaces are found.
	Namespaces netns.Config
	// Programs: the programs can tell namespaces apart (bpf.Features.NetnsCookie).
	Programs bool
	// Cookie tells the cookie of the calling thread's network namespace
	// (natinit.Cookies). An error that matches natinit.ErrNoCookie is for good.
	Cookie func() (uint64, error)
	// Rescan is DefaultRescan if 0.
	Rescan time.Duration
}

// Status is what a Reconciler knows and does.
type Status struct {
	Synced   bool // the table is as it should be, for all that is known
	Problems []Problem
	Scans    int // how often namespaces were looked for
	// Err is why the table isn't as it should be: no rights to see namespaces
	// (netns.ErrRefused), none with a name (natinit.ErrNoCookie), the map is full (ErrFull).
	Err error
}

// Reconciler keeps the table up to date while Run runs. Its other methods give
// it what the API says; they don't wait, and are safe for concurrent use.
type Reconciler struct {
	cfg  Config
	wake chan struct{}

	mu       sync.Mutex // guards what follows
	pods     map[types.NamespacedName]pod
	synced   bool
	node     []netip.Addr
	ranges   bool
	fallback bool
	changes  uint64
	status   Status

	run run // Run's own
}

// run is what Run remembers from one time to the next.
type run struct {
	table    *Table // what the store holds; nil: not known
	lastSeen map[types.NamespacedName]sighting
	noCookie error // the reason that namespaces can't be named, nil if they can
	retries  int
	scans    int
	seen     uint64 // Reconciler.changes
	rescan   time.Time
	logged   map[Problem]bool
}

// sighting is the namespace in which a pod was seen.
type sighting struct {
	cookie       uint64
	uid          types.UID
	addr4, addr6 netip.Addr
	at           time.Time
}

// New makes a Reconciler.
func New(cfg Config) *Reconciler {
	if cfg.Rescan == 0 {
		cfg.Rescan = DefaultRescan
	}
	return &Reconciler{
		cfg: cfg, wake: make(chan struct{}, 1), pods: map[types.NamespacedName]pod{},
		run: run{lastSeen: map[types.NamespacedName]sighting{}, logged: map[Problem]bool{}},
	}
}

// SetPod reports a pod of this node, new or changed.
func (r *Reconciler) SetPod(p *corev1.Pod) {
	next, ok := podOf(p)
	if !ok {
		r.DeletePod(types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
		return
	}
	r.change(func() bool {
		if former, ok := r.pods[next.name]; ok && former == next {
			return false
		}
		r.pods[next.name] = next
		return true
	})
}

// DeletePod reports that a pod is gone.
func (r *Reconciler) DeletePod(name types.NamespacedName) {
	r.change(func() bool {
		_, ok := r.pods[name]
		delete(r.pods, name)
		return ok
	})
}

// SetSynced reports that all pods of the node are known. Nothing is written
// before: what a former runtime wrote stays until then.
func (r *Reconciler) SetSynced() {
	r.change(func() bool { now := !r.synced; r.synced = true; return now })
}

// SetNode says by which addresses the node is known, the primary ones first.
func (r *Reconciler) SetNode(addrs []netip.Addr) {
	r.change(func() bool {
		if slices.Equal(r.node, addrs) {
			return false
		}
		r.node = slices.Clone(addrs)
		return true
	})
}

// SetRanges says whether any Service has source ranges.
func (r *Reconciler) SetRanges(any bool) {
	r.change(func() bool { now := r.ranges != any; r.ranges = any; return now })
}

// SetFallback says whether something else on the node, such as kube-proxy,
// serves Services. While nothing does, which is assumed at first, no pod can opt out.
func (r *Reconciler) SetFallback(served bool) {
	r.change(func() bool { now := r.fallback != served; r.fallback = served; return now })
}

func (r *Reconciler) change(fn func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !fn() {
		return
	}
	r.changes++
	r.status.Synced = false
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Status is a copy of what is known.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Problems = slices.Clone(s.Problems)
	return s
}

// Run works until the context ends, and returns nil then. It leaves the table as it is.
func (r *Reconciler) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	gathering := true // the timer is not to be put off: changes may never end
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			if !gathering {
				timer.Reset(gatherTime)
				gathering = true
			}
			continue
		case <-timer.C:
		}
		gathering = false
		if wait := r.reconcile(ctx); wait > 0 {
			timer.Reset(wait)
		}
	}
}

// reconcile makes the table what it should be, and says when to do it again; 0: at the next change.
func (r *Reconciler) reconcile(ctx context.Context) time.Duration {
	in, changes, ok := r.input()
	if !ok {
		return 0
	}
	if changes != r.run.seen {
		r.run.seen, r.run.retries = changes, 0
	}
	complete := true
	var scanErr error
	if in.needsNamespaces() {
		if time.Now().After(r.run.rescan) {
			r.run.table, r.run.rescan = nil, time.Now().Add(r.cfg.Rescan) // reads what others may have done
		}
		complete, scanErr = r.look(ctx, in)
		if ctx.Err() != nil {
			return 0
		}
		if errors.Is(scanErr, natinit.ErrNoCookie) {
			r.run.noCookie, in.noCookie, complete = scanErr, true, true
		}
	}
	if in.programs && in.noCookie && in.ranges {
		scanErr = fmt.Errorf("source ranges reject every client: %w", r.run.noCookie)
	}
	out := desired(in)
	err := r.write(&out, complete)
	r.remember(in, &out)
	r.note(&out, changes, errors.Join(scanErr, err))
	switch {
	case err != nil && !errors.Is(err, ErrFull):
		return writeRetry
	case !in.needsNamespaces():
		return 0
	case len(out.missing) > 0 && r.run.retries < maxRetries:
		r.run.retries++
		return min(firstRetry<<(r.run.retries-1), r.cfg.Rescan)
	}
	return r.cfg.Rescan
}

func (r *Reconciler) input() (in *input, changes uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in = &input{
		pods: inOrder(r.pods), node: r.node, ranges: r.ranges, fallback: r.fallback,
		programs: r.cfg.Programs, noCookie: r.run.noCookie != nil, isOf: r.isOf,
	}
	return in, r.changes, r.synced
}

// look finds the namespaces. complete: none was left out.
func (r *Reconciler) look(ctx context.Context, in *input) (complete bool, err error) {
	r.run.scans++
	list, err := r.cfg.Namespaces.List()
	if err != nil {
		return false, err
	}
	var failed error
	err = r.cfg.Namespaces.Visit(ctx, list, func(found netns.Namespace) bool {
		ns := namespace{host: found.Host, pids: found.Pids}
		if ns.cookie, failed = r.cfg.Cookie(); failed == nil {
			ns.addrs, failed = netns.Addrs()
		}
		if failed != nil {
			return false
		}
		in.namespaces = append(in.namespaces, ns)
		return true
	})
	in.lastSeen = map[types.NamespacedName]uint64{}
	for _, p := range in.pods {
		if k, ok := r.run.lastSeen[p.name]; ok && k.uid == p.uid && k.addr4 == p.addr4 && k.addr6 == p.addr6 && time.Since(k.at) < keepTime {
			in.lastSeen[p.name] = k.cookie
		}
	}
	err = errors.Join(failed, err)
	return err == nil, err
}

// write brings the store up to date. What wasn't seen in a look that failed keeps its entry.
func (r *Reconciler) write(out *output, complete bool) error {
	if r.run.table == nil {
		t, err := r.cfg.Store.Read()
		if err != nil {
			return err
		}
		r.run.table = &t
	}
	if !complete {
		for cookie, w := range r.run.table.Workloads {
			if _, ok := out.table.Workloads[cookie]; !ok {
				out.table.Workloads[cookie] = w
				out.table.Control |= r.run.table.Control
			}
		}
	}
	writes, err := apply(r.cfg.Store, r.run.table, out.table)
	if writes > 0 {
		r.cfg.Log.Debug("updated the network namespaces that programs know", "writes", writes, "entries", len(r.run.table.Workloads))
	}
	if err != nil {
		r.run.table = nil // read again what it holds
	}
	return err
}

// remember keeps where pods were seen.
func (r *Reconciler) remember(in *input, out *output) {
	now := time.Now()
	seen := map[uint64]bool{}
	for _, ns := range in.namespaces {
		seen[ns.cookie] = true
	}
	lastSeen := map[types.NamespacedName]sighting{}
	for _, p := range in.pods {
		if former, ok := r.run.lastSeen[p.name]; ok {
			lastSeen[p.name] = former
		}
	}
	for cookie, p := range out.owner {
		if seen[cookie] {
			lastSeen[p.name] = sighting{cookie, p.uid, p.addr4, p.addr6, now}
		}
	}
	r.run.lastSeen = lastSeen
}

// note publishes what came of it, and logs each problem once.
func (r *Reconciler) note(out *output, changes uint64, err error) {
	logged := map[Problem]bool{}
	for _, p := range out.problems {
		if p.Reason == NoNamespace && r.run.retries < maxRetries {
			continue // it may just be too early
		}
		if logged[p] = true; !r.run.logged[p] {
			r.cfg.Log.Warn("pod: "+p.Message, "pod", p.Pod.String(), "reason", string(p.Reason))
		}
	}
	r.run.logged = logged

	r.mu.Lock()
	defer r.mu.Unlock()
	former := r.status
	r.status = Status{Synced: err == nil && changes == r.changes, Problems: out.problems, Scans: r.run.scans, Err: err}
	if err != nil && (former.Err == nil || former.Err.Error() != err.Error()) {
		r.cfg.Log.Warn("the programs do not know all network namespaces that they should", "error", err)
	}
}

// isOf reports whether one of the processes is in a cgroup of the pod, which has
// the pod's uid in its name: /kubepods/burstable/pod<uid>, or by systemd
// kubepods-burstable-pod<uid with _>.slice (kubelet's cgroup manager).
func (r *Reconciler) isOf(pids []int, uid types.UID) bool {
	if uid == "" {
		return false
	}
	proc := r.cfg.Namespaces.Proc
	if proc == "" {
		proc = "/proc"
	}
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
		if err != nil {
			continue
		}
		if hostproc.PodOf(string(b)) == string(uid) {
			return true
		}
	}
	return false
}
