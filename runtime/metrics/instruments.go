package metrics

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// count only grows.
type count struct{ n atomic.Uint64 }

func (c *count) add(n int) {
	if n > 0 {
		c.n.Add(uint64(n))
	}
}

func (c *count) value() float64 { return float64(c.n.Load()) }

// level goes up and down.
type level struct{ bits atomic.Uint64 }

func (l *level) set(v float64)  { l.bits.Store(math.Float64bits(v)) }
func (l *level) value() float64 { return math.Float64frombits(l.bits.Load()) }

// times are a histogram of seconds.
type times struct {
	bounds []float64 // upper ones, ascending

	mu     sync.Mutex
	counts []uint64 // by bound; the last one is of what is above all
	sum    float64
}

func newTimes(bounds []float64) *times {
	return &times{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (t *times) observe(seconds float64) {
	i, _ := slices.BinarySearch(t.bounds, seconds) // a value on a bound belongs below it
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[i]++
	t.sum += seconds
}

// write adds the histogram to a page: counts are of all values up to a bound.
func (t *times) write(p *Page, name, help string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.family(name, histogram, help)
	total := uint64(0)
	for i, n := range t.counts {
		total += n
		bound := math.Inf(+1)
		if i < len(t.bounds) {
			bound = t.bounds[i]
		}
		p.sample("_bucket", float64(total), Label{"le", string(appendFloat(nil, bound))})
	}
	p.sample("_sum", t.sum)
	p.sample("_count", float64(total))
}

// exponential are n bounds, each factor times the one before.
func exponential(first, factor float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = first
		first *= factor
	}
	return out
}

// linear are n bounds, each step above the one before.
func linear(first, step float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = first + float64(i)*step
	}
	return out
}
