package metrics

import (
	"math"
	"testing"
)

func TestHistogram(t *testing.T) {
	h := newHistogram([]float64{0.1, 1, 10})
	for _, v := range []float64{0.05, 0.1, 0.5, 1, 1.5, 100} {
		h.observe(v)
	}
	p := &Page{}
	h.write(p, "a_seconds", "Times.")
	got := parse(t, p.b).metric("a_seconds").GetHistogram()
	if got.GetSampleCount() != 6 || math.Abs(got.GetSampleSum()-103.15) > 1e-9 {
		t.Errorf("%v", got)
	}
	want := []uint64{2, 4, 5, 6}
	for i, b := range got.GetBucket() {
		if b.GetCumulativeCount() != want[i] {
			t.Errorf("up to %v: %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want[i])
		}
	}
}
