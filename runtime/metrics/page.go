package metrics

import (
	"math"
	"strconv"
	"strings"
)

// Page is a text in Prometheus' format 0.0.4, in the making.
type Page struct {
	b    []byte
	name string // of the family at hand
}

// Label is a name and a value, which may be any text.
type Label struct{ Name, Value string }

// family begins a family: all its samples come next.
func (p *Page) family(name, kind, help string) {
	p.name = name
	p.b = append(p.b, "# HELP "...)
	p.b = append(p.b, name...)
	p.b = append(p.b, ' ')
	p.b = append(p.b, helpEscaper.Replace(help)...)
	p.b = append(p.b, "\n# TYPE "...)
	p.b = append(p.b, name...)
	p.b = append(p.b, ' ')
	p.b = append(p.b, kind...)
	p.b = append(p.b, '\n')
}

// Counter adds a counter without labels.
func (p *Page) Counter(name, help string, value float64) {
	p.family(name, "counter", help)
	p.sample("", value)
}

// Gauge adds a gauge without labels.
func (p *Page) Gauge(name, help string, value float64) {
	p.family(name, "gauge", help)
	p.sample("", value)
}

// Counters adds a counter with labels: each is called with the function that adds one sample.
func (p *Page) Counters(name, help string, each func(add func(value float64, labels ...Label))) {
	p.family(name, "counter", help)
	each(func(v float64, l ...Label) { p.sample("", v, l...) })
}

// Gauges is as Counters.
func (p *Page) Gauges(name, help string, each func(add func(value float64, labels ...Label))) {
	p.family(name, "gauge", help)
	each(func(v float64, l ...Label) { p.sample("", v, l...) })
}

// sample adds a line: the family's name with a suffix, labels, value.
func (p *Page) sample(suffix string, value float64, labels ...Label) {
	p.b = append(p.b, p.name...)
	p.b = append(p.b, suffix...)
	for i, l := range labels {
		if i == 0 {
			p.b = append(p.b, '{')
		} else {
			p.b = append(p.b, ',')
		}
		p.b = append(p.b, l.Name...)
		p.b = append(p.b, `="`...)
		p.b = appendEscaped(p.b, l.Value)
		p.b = append(p.b, '"')
	}
	if len(labels) > 0 {
		p.b = append(p.b, '}')
	}
	p.b = append(p.b, ' ')
	p.b = appendFloat(p.b, value)
	p.b = append(p.b, '\n')
}

var helpEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`)

// appendEscaped appends a label's value. What is not UTF-8 is replaced: one such byte would cost the whole page.
func appendEscaped(b []byte, s string) []byte {
	for _, r := range s { // U+FFFD for what is no UTF-8
		switch r {
		case '\\':
			b = append(b, `\\`...)
		case '"':
			b = append(b, `\"`...)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, string(r)...)
		}
	}
	return b
}

func appendFloat(b []byte, v float64) []byte {
	switch {
	case v == 0:
		return append(b, '0')
	case math.IsInf(v, +1):
		return append(b, "+Inf"...)
	case v == math.Trunc(v) && math.Abs(v) < 1<<53:
		return strconv.AppendInt(b, int64(v), 10)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}
