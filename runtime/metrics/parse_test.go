package metrics

import (
	"bytes"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// families are a page as Prometheus' own parser understands it.
type families map[string]*dto.MetricFamily

func parse(t testing.TB, page []byte) families {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation) // what every Prometheus takes
	f, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("%v\n%s", err, page)
	}
	return f
}

// value is that of a sample, whose labels are given as name, value, …
func (f families) value(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	m := f.metric(name, labels...)
	switch {
	case m == nil:
		t.Fatalf("there is no %s with %q", name, labels)
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	t.Fatalf("%s has no single value", name)
	return 0
}

func (f families) metric(name string, labels ...string) *dto.Metric {
	for _, m := range f[name].GetMetric() {
		has := 0
		for i := 0; i+1 < len(labels); i += 2 {
			for _, l := range m.Label {
				if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
					has++
				}
			}
		}
		if has == len(labels)/2 && has == len(m.Label) {
			return m
		}
	}
	return nil
}

// lint asks Prometheus' linter about metrics whose names are ours to choose.
func lint(t testing.TB, page []byte) {
	t.Helper()
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "firsthop_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
