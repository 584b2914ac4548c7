package running

import (
	"strings"
	"testing"
)

// TestWhatIsSeenOfTheRunning asks the command line about a node whose runtime runs, was killed, and runs again.
func TestWhatIsSeenOfTheRunning(t *testing.T) {
	f := newFixture(t)
	w := newWorld("seen")
	w.endpoints = ep("p1", "p3")
	w.put(f, f.cluster)
	f.fence.await()
	says := func(code int, line []string, texts ...string) {
		t.Helper()
		out, got := f.node.command(line...)
		if got != code {
			t.Errorf("firsthop %s: exit code %d, want %d", strings.Join(line, " "), got, code)
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("firsthop %s doesn't say %q:\n%s", strings.Join(line, " "), text, out)
			}
		}
	}
	seen := func() {
		t.Helper()
		says(0, []string{"nat", "seen"}, "default/seen:http", "runtime")
		says(0, []string{"nat"}, "default/kubernetes:https")
		says(0, []string{"nat", "lookup", vip}, "default/kubernetes:https", "translated")
		says(0, []string{"status"}, "serving; proven", "runtime pid ", "Service ports are served")
		says(0, []string{"doctor"}, "alive and in step with the API", " 0 failed")
	}
	seen()
	f.node.run.Kill()
	says(0, []string{"status"}, "serving; proven", "runtime not running")
	says(0, []string{"nat"}, "default/kubernetes", "runtime")
	says(0, []string{"doctor"}, "changes are not followed")
	f.node.start()
	eventually(t, "the next runtime", func() string {
		out, _ := f.node.command("doctor")
		if strings.Contains(out, "alive and in step with the API") {
			return ""
		}
		return out
	})
	seen()
	f.node.stop()
	says(0, []string{"status"}, "runtime not running")
}
