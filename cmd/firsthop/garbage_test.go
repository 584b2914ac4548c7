package main

import (
	"bytes"
	"math"
	"os"
	stdruntime "runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestCollectGarbageAsUsualOnceSteady(t *testing.T) {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(memoryLimit) // as main does
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	var out bytes.Buffer
	none := func(string) (string, bool) { return "", false }
	e := env{stdout: &output{Writer: &out}, stderr: &out, environ: os.Environ, getenv: func(string) string { return "" }, lookupEnv: none}
	dir := t.TempDir()
	if code := run(t.Context(), e, []string{"firsthop", "run", "--bpffs", dir, "--cgroup", dir, "--run-dir", dir, "--state-dir", dir}); code == 0 {
		t.Fatalf("run in empty directories ended well: %s", &out)
	}
	if got := debug.SetGCPercent(-1); got != steadyPercent {
		t.Errorf("garbage is collected when the heap has grown by %d%%, want %d", got, steadyPercent)
	}
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("garbage is collected all the time above %d bytes, want no limit", got)
	}
}

func TestCollectGarbageLateAtTheStart(t *testing.T) {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(memoryLimit) // as main does
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	for name, end := range map[string]func(steady func()){
		"the table is written":    func(steady func()) { steady() },
		"garbage was collected":   func(func()) { stdruntime.GC() },
		"both, one after another": func(steady func()) { stdruntime.GC(); steady() },
	} {
		steady := collectGarbage()
		if got := debug.SetMemoryLimit(-1); got != startMemory {
			t.Errorf("before %s: limit %d, want %d", name, got, startMemory)
		}
		end(steady)
		for deadline := time.Now().Add(10 * time.Second); debug.SetMemoryLimit(-1) != math.MaxInt64; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %s: limit %d", name, debug.SetMemoryLimit(-1))
			}
		}
		if got := debug.SetGCPercent(100); got != steadyPercent {
			t.Errorf("after %s: percent %d", name, got)
		}
	}
}
