package sockets

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// gatherTime is how long a Destroyer waits for more before it looks: a
	// rollout changes a Service many times, and each look reads the whole way back.
	gatherTime = 100 * time.Millisecond
	// againTime is when it looks for those whom the first look could not see: a
	// socket that was being connected while the table changed.
	againTime = 500 * time.Millisecond
	// retryTime and maxTries are for looks that failed.
	retryTime = 2 * time.Second
	maxTries  = 3
)

// DestroyerConfig is what a Destroyer needs to know.
type DestroyerConfig struct {
	Log *slog.Logger
	// Config gives what Destroy works on; it is asked before each look, as maps
	// are exchanged when they grow. Its error is as one of Destroy.
	Config func() (Config, error)
	// StillGone is asked before each look: a backend that is back is left alone.
	// nil: they never come back.
	StillGone func(Backend) bool
}

// Destroyer calls Destroy for backends as they go, and once more for sockets
// that were being connected at that time.
type Destroyer struct {
	cfg  DestroyerConfig
	wake chan struct{}

	mu      sync.Mutex // guards what follows
	pending map[Backend]look
	total   Result
	err     error
}

// look is when to look for a backend's sockets.
type look struct {
	due   time.Time
	last  bool // the second one
	tries int  // that failed
}

// NewDestroyer makes one that works while Run does.
func NewDestroyer(cfg DestroyerConfig) *Destroyer {
	return &Destroyer{cfg: cfg, wake: make(chan struct{}, 1), pending: map[Backend]look{}}
}

// Gone names backends that are gone from the table. It doesn't wait. Safe for
// concurrent use, as are the other methods.
func (d *Destroyer) Gone(list ...Backend) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(list) == 0 || errors.Is(d.err, ErrNotSupported) {
		return
	}
	due := time.Now().Add(gatherTime)
	for _, b := range list {
		if now, ok := d.pending[b]; ok && !now.last && now.tries == 0 {
			continue // it is about to be looked for
		}
		d.pending[b] = look{due: due}
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Total is what was done so far, and the error of the last look, nil if it went
// well. One that matches ErrNotSupported stays.
func (d *Destroyer) Total() (Result, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total, d.err
}

// Run works until the context ends, and returns nil then.
func (d *Destroyer) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, wait := d.due()
		if len(due) > 0 {
			d.look(ctx, due)
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-timer.C:
		}
	}
}

// due takes what is due out of what is pending, and says when the next is.
func (d *Destroyer) due() (map[Backend]look, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due, now, wait := map[Backend]look{}, time.Now(), time.Hour
	for b, l := range d.pending {
		if left := l.due.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		due[b] = l
		delete(d.pending, b)
	}
	return due, wait
}

func (d *Destroyer) look(ctx context.Context, due map[Backend]look) {
	var gone []Backend
	for b := range due {
		if d.cfg.StillGone == nil || d.cfg.StillGone(b) {
			gone = append(gone, b)
		} else {
			delete(due, b)
		}
	}
	if len(gone) == 0 {
		return
	}
	cfg, err := d.cfg.Config()
	var res Result
	if err == nil {
		res, err = Destroy(ctx, cfg, gone)
	}
	if ctx.Err() != nil {
		return
	}
	if n := res.UDP + res.TCP; n > 0 {
		d.cfg.Log.Info("destroyed sockets of backends that are gone", "udp", res.UDP, "tcp", res.TCP, "backends", len(gone))
	}
	d.note(due, res, err)
}

// note counts a look and plans the next.
func (d *Destroyer) note(due map[Backend]look, res Result, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total.UDP += res.UDP
	d.total.TCP += res.TCP
	d.total.Candidates += res.Candidates
	d.total.Looked += res.Looked
	if err != nil && (d.err == nil || d.err.Error() != err.Error()) {
		d.cfg.Log.Warn("sockets of backends that are gone were not destroyed", "error", err)
	}
	d.err = err
	if errors.Is(err, ErrNotSupported) {
		clear(d.pending)
		return
	}
	for b, l := range due {
		if _, again := d.pending[b]; again {
			continue
		}
		switch {
		case err != nil && l.tries+1 < maxTries:
			l.tries++
			l.due = time.Now().Add(retryTime)
		case err == nil && !l.last:
			l = look{due: time.Now().Add(againTime), last: true}
		default:
			continue
		}
		d.pending[b] = l
	}
}
