package main

import (
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/runtime/admin"
)

func TestStatusTellsOfChangesThatWait(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		adopted bool
		waiting time.Duration
		want    string
	}{
		{"nothing waits", true, 0, ""},
		{"a change has just come", true, time.Second, ""},
		{"a change waits for longer than a write takes", true, 42 * time.Second, "for 42s"},
		{"the first write waits for API servers", false, time.Hour, ""},
	} {
		st := &admin.Status{Adopted: tc.adopted}
		if tc.waiting > 0 {
			since := now.Add(-tc.waiting)
			st.Waiting = &since
		}
		got := strings.Join(runtimeStatus(st, now).Troubles, "; ")
		if !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
