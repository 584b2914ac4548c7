package runtime

import (
	"testing"
	"time"
)

// A service manager kills who takes long to end: the end waits for its parts, but not for one that sleeps.
func TestTheEndIsBounded(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	for _, tc := range []struct {
		name        string
		limit       time.Duration
		wait        func()
		least, most time.Duration
	}{
		{"all have ended", time.Hour, func() {}, 0, 30 * time.Second},
		{"one ends a little later", time.Hour, func() { time.Sleep(50 * time.Millisecond) }, 50 * time.Millisecond, 30 * time.Second},
		{"one never ends", 50 * time.Millisecond, func() { <-gate }, 50 * time.Millisecond, 30 * time.Second},
	} {
		began := time.Now()
		ended := make(chan struct{})
		go func() { await(tc.limit, tc.wait); close(ended) }()
		select {
		case <-ended:
		case <-time.After(tc.most):
			t.Fatalf("%s: no end within %s", tc.name, tc.most)
		}
		if took := time.Since(began); took < tc.least {
			t.Errorf("%s: waited for %s only", tc.name, took)
		}
	}
	if endTime > 5*time.Second { // TimeoutStopSec of a unit, or of a pod with a short grace, leaves room for the rest
		t.Errorf("the end may take %s", endTime)
	}
}
