package metrics

import (
	"testing"
	"time"
)

func TestTrigger(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		want        time.Time
	}{
		{"a time as the controller writes it", "2026-01-02T03:04:05.678Z", time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)},
		{"none", "", time.Time{}},
		{"no time", "yesterday", time.Time{}},
	} {
		if got := Trigger(map[string]string{TriggerAnnotation: tc.value}); !got.Equal(tc.want) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	if !Trigger(nil).IsZero() {
		t.Error("no annotations")
	}
}

func TestCausesAreBounded(t *testing.T) {
	m := New(Config{})
	for range 10 * maxCauses {
		m.SliceChanged(web, time.Now().Add(time.Hour), false)
	}
	if n := len(m.causes.queued[web]); n == 0 || n > maxCauses {
		t.Errorf("%d", n)
	}
}
