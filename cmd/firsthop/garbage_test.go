package main

import (
	"bytes"
	"math"
	"runtime/debug"
	"testing"
)

func TestTheRuntimeCollectsGarbageAsUsual(t *testing.T) {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(memoryLimit) // as main does
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	var out bytes.Buffer
	none := func(string) (string, bool) { return "", false }
	e := env{stdout: &out, stderr: &out, getenv: func(string) string { return "" }, lookupEnv: none}
	dir := t.TempDir()
	if code := run(t.Context(), e, []string{"firsthop", "run", "--bpffs", dir, "--cgroup", dir, "--run-dir", dir, "--state-dir", dir}); code == 0 {
		t.Fatalf("run in empty directories ended well: %s", &out)
	}
	if got := debug.SetGCPercent(-1); got != 100 {
		t.Errorf("garbage is collected when the heap has grown by %d%%, want 100", got)
	}
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("garbage is collected all the time above %d bytes, want no limit", got)
	}
}
