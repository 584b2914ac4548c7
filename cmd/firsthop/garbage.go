package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"sync"
)

// startMemory is how much a runtime that starts may use before garbage is collected for the first time: less than it will
// have used at its peak with 10,000 Services, which it makes of garbage that grows from nothing. Collected at 4, 8, 16 and
// 32 MiB, as usual, it would take a tenth of the processor time of a start.
const startMemory = 64 << 20

// steadyPercent is how much of what is in use may be garbage before it is collected, once the table is written. Go's usual
// 100 had 113 MiB in use at the peak of a thousand changes with 10,000 Services, a little more than half of what kube-proxy has.
const steadyPercent = 60

// collectGarbage undoes what main has set for a program that lives for milliseconds. A runtime that knows some 5,000
// Services has more than that limit in use for good, and would collect garbage all the time: at 10,000 it took two thirds
// of the processor time of its start (test/kube/bench). Until steady is called, or the first collection is over, garbage is
// collected when startMemory is in use, and by steadyPercent from then on.
func collectGarbage() (steady func()) {
	steady = sync.OnceFunc(func() {
		debug.SetGCPercent(steadyPercent)
		debug.SetMemoryLimit(math.MaxInt64)
	})
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startMemory)
	first := new([1]*byte) // with a pointer, so that it has a place of its own in memory
	runtime.AddCleanup(first, func(f func()) { f() }, steady)
	return steady
}
