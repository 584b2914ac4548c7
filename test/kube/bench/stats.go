package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with its 95% confidence interval.
type Interval struct {
	Mean, Low, High float64
	N               int
}

// resamples is how many samples the bootstrap draws.
const resamples = 10000

// ratioOf estimates by how much pairs differ: the geometric mean of a[i]/b[i], with its interval by the percentile
// bootstrap over the pairs. What else the machine does meets both sides of a pair.
func ratioOf(a, b []float64) Interval {
	logs := make([]float64, 0, len(a))
	for i := range a {
		if a[i] > 0 && b[i] > 0 {
			logs = append(logs, math.Log(a[i]/b[i]))
		}
	}
	if len(logs) == 0 {
		return Interval{}
	}
	rng := rand.New(rand.NewPCG(1, 2)) // the same figures give the same interval
	means := make([]float64, resamples)
	for i := range means {
		sum := 0.0
		for range logs {
			sum += logs[rng.IntN(len(logs))]
		}
		means[i] = sum / float64(len(logs))
	}
	return Interval{
		Mean: math.Exp(mean(logs)), Low: math.Exp(quantile(means, 0.025)), High: math.Exp(quantile(means, 0.975)), N: len(logs),
	}
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// quantile is the value that a share q of the values does not exceed, by nearest rank; NaN of none. It leaves their
// order alone.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}
