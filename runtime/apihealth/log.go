package apihealth

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter lets a few lines pass at once, and then one in half a minute.
type limiter struct {
	mu         sync.Mutex
	rate       *rate.Limiter
	suppressed int
}

const (
	logBurst    = 6
	logInterval = 30 * time.Second
)

// write logs by a method of slog.Logger's, or counts what is not logged for the next line.
func (l *limiter) write(now time.Time, log func(msg string, args ...any), msg string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == nil {
		l.rate = rate.NewLimiter(rate.Every(logInterval), logBurst)
	}
	if !l.rate.AllowN(now, 1) {
		l.suppressed++
		return
	}
	log(msg, append(args, "suppressed", l.suppressed)...)
	l.suppressed = 0
}
