package metrics

import (
	"math"
	"slices"
)

// histogram counts seconds by upper bounds.
type histogram struct {
	bounds []float64 // ascending
	counts []uint64  // by bound; the last one is of what is above all
	sum    float64
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(seconds float64) {
	i, _ := slices.BinarySearch(h.bounds, seconds) // a value on a bound belongs below it
	h.counts[i]++
	h.sum += seconds
}

// write adds the histogram to a page: counts are of all values up to a bound.
func (h *histogram) write(p *Page, name, help string) {
	p.family(name, "histogram", help)
	total := uint64(0)
	for i, n := range h.counts {
		total += n
		bound := math.Inf(+1)
		if i < len(h.bounds) {
			bound = h.bounds[i]
		}
		p.sample("_bucket", float64(total), Label{"le", string(appendFloat(nil, bound))})
	}
	p.sample("_sum", h.sum)
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
