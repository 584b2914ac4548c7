package metrics

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPageIsParsed(t *testing.T) {
	strange := []string{"", "a b", `quo"te`, `back\slash`, "new\nline", "naïve 日本", `\n`, "{a=\"b\"} 1"}
	p := &Page{}
	p.Counter("a_total", "First line.\nA back\\slash.", 3)
	p.Gauges("b", "Values.", func(add adder) {
		for i, s := range strange {
			add(float64(i), Label{"x", s}, Label{"y", "1"})
		}
	})
	p.Gauges("none", "Nothing to tell.", func(adder) {})
	f := parse(t, p.b)
	if got := f["a_total"].GetHelp(); got != "First line.\nA back\\slash." {
		t.Errorf("%q", got)
	}
	if v := f.value(t, "a_total"); v != 3 {
		t.Error(v)
	}
	for i, s := range strange {
		if v := f.value(t, "b", "x", s, "y", "1"); v != float64(i) {
			t.Errorf("%q: %v", s, v)
		}
	}
}

func TestPageReplacesInvalidUTF8(t *testing.T) {
	p := &Page{}
	p.Gauges("a", "Values.", func(add adder) { add(1, Label{"x", "\xff\xfe"}) })
	if v := parse(t, p.b).value(t, "a", "x", "\uFFFD\uFFFD"); v != 1 {
		t.Error(v)
	}
}

func TestAppendFloat(t *testing.T) {
	for _, v := range []float64{0, 1, -1, 0.25, 1e-9, 1 << 53, 1<<53 + 2, math.MaxUint64, 1.7e9 + 0.123456, math.Inf(+1), math.MaxFloat64, math.SmallestNonzeroFloat64} {
		p := &Page{}
		p.Gauge("a", "A value.", v)
		if got := parse(t, p.b).value(t, "a"); got != v {
			t.Errorf("%v is read as %v: %s", v, got, p.b)
		}
	}
}

func FuzzLabels(f *testing.F) {
	for _, s := range []string{"", "a", `"`, `\`, "\n", "\xff", `\"`, "\u2028", "}\nb 1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := &Page{}
		p.Gauges("a", s, func(add adder) { add(1, Label{"x", s}) })
		got := parse(t, p.b)
		if len(got) != 1 {
			t.Fatalf("%q makes %d families", s, len(got))
		}
		if got.metric("a", "x", string([]rune(s))) == nil {
			t.Errorf("%q is not there: %s", s, p.b)
		}
	})
}

// Dashboards and alerts hang on the names, kinds, helps and labels. The file is written anew by a test run with
// FIRSTHOP_UPDATE set.
func TestPageKeepsItsFamilies(t *testing.T) {
	m := New(whole())
	m.Answered("/healthz", 503)
	m.Answered("/livez", 200)
	values := regexp.MustCompile(`(?m)^([^#].*) \S+$`)
	page := values.ReplaceAllString(string(m.Page()), "$1")
	page = strings.ReplaceAll(page, runtime.Version(), "GO")
	file := filepath.Join("testdata", "page")
	if os.Getenv("FIRSTHOP_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), page); diff != "" {
		t.Errorf("families changed (-want +got)\n%s", diff)
	}
}
