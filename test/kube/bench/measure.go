package bench

import (
	"slices"
	"testing"
	"time"
)

// Measure measures all of it.
func Measure(t testing.TB, opts Options) Result {
	t.Helper()
	r := Result{Began: time.Now(), Endpoints: len(oldBackends)}
	r.Load[0] = load()
	w := newWorld(t, opts)
	r.describe(t, w)
	for _, size := range opts.Sizes {
		r.Sizes = append(r.Sizes, w.measureSize(size))
		r.Load[1], r.Ended = load(), time.Now()
		if opts.Keep != nil {
			opts.Keep(r)
		}
	}
	for _, k := range w.contenders {
		k.stop()
	}
	return r
}

// full are the contenders of which all is measured.
func (w *world) full() []*contender {
	return slices.DeleteFunc(slices.Clone(w.contenders), func(k *contender) bool { return k.name == iptablesNFT })
}

func (w *world) measureSize(size int) Size {
	w.t.Helper()
	for _, k := range w.contenders {
		k.stop() // so that it does not work for what is to be measured later
	}
	w.grow(size)
	s := Size{Services: size, Starts: map[string][]Start{}, Memory: map[string]Memory{}}
	starts := 1
	if size == w.opts.ChangeSize {
		starts = max(1, w.opts.Starts)
	}
	for n := range starts {
		for i := range w.contenders {
			k := w.contenders[(i+n)%len(w.contenders)]
			if k.name == iptablesNFT && (size != w.opts.ChangeSize || n < starts-1) {
				continue
			}
			start := k.measureStart(size)
			w.opts.Log("%d Services: %s: start %.2f s, from sync %.3f s, CPU %.2f s", size, k.name, start.FromExec, start.FromSync, start.CPU)
			s.Starts[k.name] = append(s.Starts[k.name], start)
			if n < starts-1 {
				k.stop() // so that the others have the machine for themselves
				continue
			}
			s.Memory[k.name] = Memory{AfterStart: peakMiB(w.t, k.proc.PID())}
		}
	}
	s.Load = load()
	s.Connects = w.measureConnects(size)
	for _, k := range w.full() {
		name, c := k.name, s.Connects[k.name]
		w.opts.Log("%d Services: %s: %.0f connects/s, of direct %+v; %v %v", size, name,
			quantile(c.VIP.Rates, 0.5), ratioOf(c.VIP.Rates, c.Direct.Rates), c.VIP.Failures, c.Direct.Failures)
	}
	if size == w.opts.ChangeSize {
		s.Changes = w.measureChanges()
		for _, k := range w.full() {
			name := k.name
			w.opts.Log("%s: first connect after a change: p50 %.4f s, p99 %.4f s", name,
				quantile(seconds(s.Changes[name]), 0.5), quantile(seconds(s.Changes[name]), 0.99))
		}
		s.Many = w.measureMany()
		w.opts.Log("CPU of %d changes: %v", s.Many.Changes, s.Many.CPU)
	}
	for _, k := range w.contenders {
		if k.proc == nil {
			continue
		}
		m := s.Memory[k.name]
		m.Peak = peakMiB(w.t, k.proc.PID())
		s.Memory[k.name] = m
	}
	w.opts.Log("%d Services: memory %v", size, s.Memory)
	return s
}

func seconds(changes []Change) []float64 {
	var s []float64
	for _, c := range changes {
		s = append(s, c.Seconds)
	}
	return s
}
