package watch

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// The back-off of one resource's lists and watches. client-go's reflector has one
// for some errors only: it asks again at once where a watch answers 410, or ends
// right after it began, and so every node of a cluster asked thousands of times a second.
const (
	firstPause   = 400 * time.Millisecond
	pauseFactor  = 1.8
	longestPause = 8 * time.Second // a control plane that comes back is noticed within ten seconds
	pauseJitter  = 0.25            // upwards: nodes that lost their watches together come back apart

	// settledWatch is how long a watch must last to end the back-off. One that ends
	// before shortWatch has failed, whatever it sent.
	settledWatch, shortWatch = 10 * time.Second, time.Second

	// longestAsked bounds how long an API server may ask to be left alone (Retry-After).
	longestAsked = time.Minute
	// uselessAfter is how many failures in a row another API server is worth.
	uselessAfter = 3
	// listTime bounds a list: an API server itself gives it a minute.
	listTime = 75 * time.Second
)

// errShort says that a watch ended at once.
var errShort = errors.New("the API server accepts the watch and ends it at once")

// paced asks for lists and watches no faster than they succeed.
type paced struct {
	cache.ListerWatcher
	w     *Watcher
	s     source
	ctx   context.Context // of the watcher: the reflector lists with one that never ends
	sleep func(ctx context.Context, d time.Duration)
	now   func() time.Time

	mu      sync.Mutex
	fails   int
	next    time.Time // no request before
	refused bool      // a request that was invalid, which is asked for in another way
	listed  bool      // a list was taken, and no watch has lasted since
}

func newPaced(ctx context.Context, w *Watcher, s source, lw cache.ListerWatcher) *paced {
	return &paced{ListerWatcher: lw, w: w, s: s, ctx: ctx, sleep: w.sleep, now: time.Now}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// wait waits until the next request may be sent.
func (p *paced) wait() {
	p.mu.Lock()
	d := p.next.Sub(p.now())
	p.mu.Unlock()
	if d > 0 {
		p.sleep(p.ctx, d)
	}
}

// failed makes the next request wait longer than the one before did.
func (p *paced) failed(err error) {
	again := p.fail(err) >= uselessAfter && anotherMay(err)
	if (again || errors.Is(err, context.DeadlineExceeded)) && p.w.cfg.OnUseless != nil { // a list's time is long
		p.w.cfg.OnUseless()
	}
}

// fail counts a failure, and returns how many there were in a row.
func (p *paced) fail(err error) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if apierrors.IsInvalid(err) && !p.refused {
		p.refused = true // an API server without watch-lists: the reflector asks for a list instead
		return 0
	}
	p.fails++
	d := pauseAfter(p.fails)
	if seconds, asked := apierrors.SuggestsClientDelay(err); asked {
		d = max(d, min(time.Duration(seconds)*time.Second, longestAsked))
	}
	p.next = p.now().Add(d)
	return p.fails
}

// anotherMay reports whether another API server may answer better: not where the cluster's
// own rules say no, or where we are asked for patience.
func anotherMay(err error) bool {
	return !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) && !apierrors.IsTooManyRequests(err)
}

func pauseAfter(fails int) time.Duration {
	d := float64(firstPause)
	for range min(fails-1, 20) {
		d = min(d*pauseFactor, float64(longestPause))
	}
	return time.Duration(d * (1 + pauseJitter*rand.Float64()))
}

// ListWithContext implements cache.ListerWithContext.
func (p *paced) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if o.Continue == "" {
		p.mu.Lock()
		again := p.listed
		p.listed = false
		p.mu.Unlock()
		if again { // the last list, or the watch after it, came to nothing
			p.failed(nil)
		}
		p.wait()
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	list, err := cache.ToListerWatcherWithContext(p.ListerWatcher).ListWithContext(ctx, o)
	if err != nil {
		p.failed(err)
		p.w.noted(p.ctx, p.s, err)
		return list, err
	}
	p.mu.Lock()
	p.listed = true
	p.mu.Unlock()
	return list, nil
}

// WatchWithContext implements cache.WatcherWithContext.
func (p *paced) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	p.wait()
	wi, err := cache.ToListerWatcherWithContext(p.ListerWatcher).WatchWithContext(ctx, o)
	if err != nil {
		p.failed(err)
		p.w.noted(p.ctx, p.s, err)
		return wi, err
	}
	pw := &pacedWatch{Interface: wi, p: p, began: p.now()}
	pw.well = time.AfterFunc(shortWatch, func() { p.w.noted(p.ctx, p.s, nil) })
	return pw, nil
}

// ended takes how long a watch lasted.
func (p *paced) ended(lasted time.Duration) {
	switch {
	case p.ctx.Err() != nil:
	case lasted >= settledWatch:
		p.mu.Lock()
		p.fails, p.next, p.listed = 0, time.Time{}, false
		p.mu.Unlock()
	case lasted >= shortWatch:
		p.mu.Lock()
		p.fails, p.listed = 0, false
		p.mu.Unlock()
		p.failed(nil)
	default:
		p.failed(nil)
		p.w.failed(p.s.resource, errShort)
	}
}

// pacedWatch notes when the reflector is done with a watch: it stops each.
type pacedWatch struct {
	watch.Interface
	p     *paced
	began time.Time
	well  *time.Timer
	once  sync.Once
}

func (w *pacedWatch) Stop() {
	w.once.Do(func() {
		w.well.Stop()
		w.p.ended(w.p.now().Sub(w.began))
	})
	w.Interface.Stop()
}
