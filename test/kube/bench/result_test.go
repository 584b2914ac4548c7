package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

func TestRatioOf(t *testing.T) {
	base := []float64{100, 120, 80, 95, 110, 105, 90, 130}
	var halves, noisy []float64
	for i, v := range base {
		halves = append(halves, v/2)
		noisy = append(noisy, v*(0.9+0.2*float64(i%2)))
	}
	if got := ratioOf(halves, base); math.Abs(got.Mean-0.5) > 1e-9 || got.Low != got.High || got.N != len(base) {
		t.Errorf("half in every pair: got %+v", got)
	}
	got := ratioOf(noisy, base)
	if got.Low >= 1 || got.High <= 1 || got.Mean < got.Low || got.Mean > got.High || got.Low < 0.9-1e-9 || got.High > 1.1+1e-9 {
		t.Errorf("a tenth more or less by turns: got %+v", got)
	}
	if got := ratioOf(nil, nil); got != (Interval{}) {
		t.Errorf("no pairs: got %+v", got)
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tc := range []struct{ q, want float64 }{{0, 1}, {0.5, 50}, {0.99, 99}, {1, 100}} {
		if got := quantile(hundred, tc.q); got != tc.want {
			t.Errorf("quantile %g of 1 to 100: got %g, want %g", tc.q, got, tc.want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing: got %g", got)
	}
}

func TestSyncTimes(t *testing.T) {
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	theirs := `I1120 14:06:17.371392    9991 shared_informer.go:388] "Caches are synced" controller="service config"`
	if got, ok := theirSync(theirs, now); !ok || !got.Equal(time.Date(2026, 11, 20, 14, 6, 17, 371392000, time.UTC)) {
		t.Errorf("kube-proxy's line: got %v, %v", got, ok)
	}
	ours := `time=2026-11-20T14:06:17.371Z level=DEBUG msg="a list is complete" resource=services objects=5`
	if got, ok := ourSync(ours); !ok || !got.Equal(time.Date(2026, 11, 20, 14, 6, 17, 371000000, time.UTC)) {
		t.Errorf("firsthop's line: got %v, %v", got, ok)
	}
	for _, line := range []string{"", strings.Replace(theirs, "service config", "node config", 1), strings.Replace(ours, "services", "nodes", 1)} {
		if _, ok := theirSync(line, now); ok {
			t.Errorf("kube-proxy: %q was taken for the sync", line)
		}
		if _, ok := ourSync(line); ok {
			t.Errorf("firsthop: %q was taken for the sync", line)
		}
	}
}

// sample is a result with figures for everything.
func sample() Result {
	r := Result{Command: "make bench-kube", Kernel: "6.18", CPU: "a CPU", CPUs: 2, Endpoints: 2}
	for _, n := range []int{10, 10000} {
		s := Size{Services: n, Load: "0.1 0.2 0.3", Starts: map[string][]Start{}, Connects: map[string]Connects{}, Memory: map[string]Memory{}}
		for i, name := range contenders {
			f := float64(i + 1)
			s.Starts[name] = []Start{{FromExec: f, FromSync: f / 2, CPU: f / 3}}
			s.Memory[name] = Memory{AfterStart: 30 * f, Peak: 40 * f}
			b := Bursts{Rates: []float64{30000 / f, 31000 / f}, P50: []float64{20, 21}, P99: []float64{40, 41}}
			c := Connects{VIP: b, Direct: b}
			if name == firsthop {
				c.Bare = b
			}
			s.Connects[name] = c
		}
		if n == 10000 {
			s.Changes = map[string][]Change{}
			s.Many = &Many{Changes: 1000, Seconds: 20, CPU: map[string]float64{}}
			for i, name := range contenders {
				s.Many.CPU[name] = float64(i + 1)
				if name != iptablesNFT {
					s.Changes[name] = []Change{{Seconds: 0.001 * math.Pow(30, float64(i)), Refused: i}}
				}
			}
		}
		r.Sizes = append(r.Sizes, s)
	}
	return r
}

func TestDocument(t *testing.T) {
	const before, after = "# Title\n\nwords\n\n", "\n\nmore words\n"
	document := []byte(before + beginMark + "\nold\n" + endMark + after)
	got, err := Insert(document, sample())
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if !strings.HasPrefix(text, before+beginMark) || !strings.HasSuffix(text, endMark+after) || strings.Contains(text, "old") {
		t.Errorf("got a document that is not what was around the markers: %s", text)
	}
	for _, want := range []string{
		"| connects through one of 10,000 Services, of bare ones | at least 0.97 | 1.000 (1.000 to 1.000, 2 pairs) | met |",
		"| first connect after a change, p99 with 10,000 Services | under 20 ms | 1.0 ms | met |",
		"| all Services programmed, from sync, of kube-proxy iptables (legacy)'s | under 1/10 | 0.500 (1/2.0) (0.500 to 0.500, 1 pairs) | **missed** |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") {
		t.Error("the document says NaN")
	}
	if again, err := Insert(got, sample()); err != nil || string(again) != text {
		t.Errorf("inserted twice, it is not the same (%v)", err)
	}
	if _, err := Insert([]byte("no markers"), sample()); err == nil {
		t.Error("a document without markers is no error")
	}
}

func TestPlotsAreXML(t *testing.T) {
	for name, svg := range map[string]string{"connects": ConnectsSVG(sample()), "costs": CostsSVG(sample())} {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, c := range full {
			if !strings.Contains(svg, colours[c]) {
				t.Errorf("%s: nothing has the colour of %s", name, c)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s has a figure that is none", name)
		}
	}
}
