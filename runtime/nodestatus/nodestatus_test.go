package nodestatus

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/lab"
)

var (
	good = Report{Active, corev1.ConditionTrue, "Proven", "the API service answered"}
	bad  = Report{Active, corev1.ConditionFalse, "TableFull", "3 Services are out"}
)

func TestReporterWritesWhatIsSet(t *testing.T) {
	a := newAPI(t)
	r, _ := newReporter(t, a, nil)
	r.Set(good)
	lab.Await(t, "it is said", func() bool { return r.Status().Writes == 1 })
	first := a.says()
	if first.report != good {
		t.Errorf("%+v", first)
	}
	if time.Since(first.changed) > patience || time.Since(first.heartbeat) > patience {
		t.Errorf("%+v", first)
	}
	node := a.edit(func(n *corev1.Node) { // as if it had been said an hour ago
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].LastTransitionTime.Time = time.Now().Add(-time.Hour)
		}
	})
	if len(node.Status.Conditions) != 2 || node.Labels["other"] != "x" {
		t.Errorf("what is others' is gone: %+v", node)
	}
	r.Saw(node)
	r.Set(Report{Fallback, good.Ready, "Other", good.Message})
	lab.Await(t, "the reason changes", func() bool { return a.says().report.Reason == "Other" })
	if s := a.says(); time.Since(s.changed) < 30*time.Minute || s.report.Mode != Fallback {
		t.Errorf("the condition's status is the same as an hour ago: %+v", s)
	}
	r.Set(bad)
	lab.Await(t, "the status changes", func() bool { return a.says().report == bad })
	if s := a.says(); time.Since(s.changed) > patience {
		t.Errorf("it changed just now: %+v", s)
	}
	lab.Await(t, "Status knows", func() bool {
		st := r.Status()
		return st.Writes == 3 && st.Err == "" && !st.Written.IsZero() && st.Report == bad
	})
	if asked := a.asked(); !slices.Equal(asked, []string{"GET /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1/status", "PATCH /api/v1/nodes/n1/status", "PATCH /api/v1/nodes/n1/status"}) {
		t.Errorf("%q", asked)
	}
}

func TestReporterWritesOnce(t *testing.T) {
	a := newAPI(t)
	r, _ := newReporter(t, a, nil)
	r.Set(good)
	lab.Await(t, "it is said", func() bool { return r.Status().Writes == 1 })
	for range 10 {
		r.Set(good)
		r.Saw(a.edit(func(*corev1.Node) {}))
	}
	again, _ := newReporter(t, a, nil) // the runtime starts again
	again.Set(good)
	lab.Await(t, "the second has looked", func() bool { return !again.Status().Written.IsZero() })
	if s := again.Status(); s.Writes != 0 {
		t.Errorf("%+v", s)
	}
	if n := len(a.asked()); n != 3 {
		t.Errorf("%q", a.asked())
	}
}

func TestReporterRestoresWhatOthersChange(t *testing.T) {
	a := newAPI(t)
	r, _ := newReporter(t, a, nil)
	r.Set(good)
	lab.Await(t, "it is said", func() bool { return a.says().report == good })
	r.Saw(a.edit(func(n *corev1.Node) { delete(n.Labels, Label) }))
	lab.Await(t, "the label is back", func() bool { return a.says().report == good })
	r.Saw(a.edit(func(n *corev1.Node) { n.Status.Conditions = n.Status.Conditions[:1] }))
	lab.Await(t, "the condition is back", func() bool { return a.says().report == good })
}

func TestReporterHeartbeat(t *testing.T) {
	a := newAPI(t)
	r, _ := newReporter(t, a, func(c *Config) { c.Heartbeat = 20 * time.Millisecond })
	r.Set(good)
	lab.Await(t, "it is said again and again", func() bool { return r.Status().Writes > 2 })
	a.edit(func(n *corev1.Node) { delete(n.Labels, Label) }) // and nobody tells
	lab.Await(t, "the label is back", func() bool { return a.says().report == good })
}

func TestReporterPausesBetweenWrites(t *testing.T) {
	const pause = 50 * time.Millisecond
	a := newAPI(t)
	r, _ := newReporter(t, a, func(c *Config) { c.Pause = pause })
	for i := 0; r.Status().Writes < 4; i++ {
		r.Set([]Report{good, bad}[i%2])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 2; i < len(a.at); i++ { // the first is a GET
		if d := a.at[i].Sub(a.at[i-1]); d < pause-5*time.Millisecond {
			t.Errorf("%d came %v after the one before", i, d)
		}
	}
}

func TestReporterRetriesAndLogsOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		code int
		says string
	}{
		{"an API server in trouble", 500, "write the label and condition of node n1"},
		{"no right to do it", 403, "patch on nodes/status"},
		{"no such node", 404, "--node-name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAPI(t)
			code := tc.code
			name := "n1"
			if code == 404 {
				name, code = "n2", 0
			}
			a.fail(code)
			r, l := newReporter(t, a, func(c *Config) { c.NodeName = name })
			r.Set(good)
			lab.Await(t, "it is tried again", func() bool { return len(a.asked()) > 3 })
			if s := r.Status(); !strings.Contains(s.Err, tc.says) || s.Writes != 0 {
				t.Errorf("%+v", s)
			}
			if n := l.Count("does not say"); n != 1 {
				t.Errorf("logged %d times", n)
			}
			if name != "n1" {
				return
			}
			a.fail(0)
			lab.Await(t, "it is said", func() bool { return a.says().report == good })
			lab.Await(t, "all is well", func() bool { return r.Status().Err == "" })
		})
	}
}

// Roles may be bound after the runtime was started, and an API server that starts refuses what it has not read the roles of.
func TestReporterRetriesARefusal(t *testing.T) {
	a := newAPI(t)
	a.fail(403)
	r, _ := newReporter(t, a, func(c *Config) { c.LongestRetry = time.Hour })
	r.Set(good)
	lab.Await(t, "it is tried a second time", func() bool { return len(a.asked()) > 1 })
	a.fail(0)
	lab.Await(t, "it is said", func() bool { return a.says().report == good })
}

func TestReportMessageIsCut(t *testing.T) {
	r := Report{Message: strings.Repeat("é", maxMessage) + "\xff"}.normal()
	if !strings.HasSuffix(r.Message, "é…") || len(r.Message) > maxMessage+3 {
		t.Errorf("%d bytes, %q", len(r.Message), r.Message[len(r.Message)-9:])
	}
	if r.normal() != r && len(r.normal().Message) > maxMessage+3 {
		t.Error("it grows")
	}
}

func TestReporterWaitsForTheFirstReport(t *testing.T) {
	a := newAPI(t)
	r, _ := newReporter(t, a, nil)
	r.Saw(a.edit(func(*corev1.Node) {}))
	r.notify()
	if asked := a.asked(); len(asked) != 0 {
		t.Errorf("%q", asked)
	}
}
