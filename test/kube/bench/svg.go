package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// drawing is an SVG that is readable on white and on black.
type drawing struct {
	strings.Builder
	width, height float64
}

// colours of the contenders, one that can be told apart by everybody, on both grounds (after Okabe and Ito).
var colours = map[string]string{firsthop: "#0a8f6c", iptables: "#d55e00", iptablesNFT: "#a855a5", nftables: "#3b82c4"}

func newDrawing(width, height float64, title string) *drawing {
	d := &drawing{width: width, height: height}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" role="img" aria-label="%s">
<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #57606a }
.grid { stroke: #d0d7de; stroke-width: 1 }
.ground { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
.grid { stroke: #3d444d }
.ground { fill: #0d1117 }
}
</style>
<rect class="ground" width="%g" height="%g"/>
`, width, height, width, height, html.EscapeString(title), width, height)
	d.text(16, 24, "title", "start", title)
	return d
}

func (d *drawing) text(x, y float64, class, anchor, s string) {
	fmt.Fprintf(d, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class, anchor, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, attributes string) {
	fmt.Fprintf(d, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, attributes)
}

func (d *drawing) legend(x, y float64, names []string) {
	for _, name := range names {
		fmt.Fprintf(d, "<rect x=\"%.1f\" y=\"%.1f\" width=\"11\" height=\"11\" rx=\"2\" fill=\"%s\"/>\n", x, y-10, colours[name])
		d.text(x+16, y, "", "start", label(name))
		x += 34 + 6.6*float64(len(label(name)))
	}
}

func (d *drawing) end() string { return d.String() + "</svg>\n" }

// ConnectsSVG shows connects a second through a Service as a share of bare ones, by the number of Services.
func ConnectsSVG(r Result) string {
	const left, right, top, bottom = 60.0, 20.0, 70.0, 50.0
	d := newDrawing(760, 380, "Connects per second through a Service, as a share of bare ones")
	d.legend(16, 48, full)
	highest := 1.1
	for _, s := range r.Sizes {
		for _, name := range full {
			highest = max(highest, ratioOf(s.Connects[name].VIP.Rates, s.Connects[firsthop].Bare.Rates).High)
		}
	}
	y := func(ratio float64) float64 { return d.height - bottom - ratio/highest*(d.height-top-bottom) }
	step := (d.width - left - right) / float64(max(1, len(r.Sizes)))
	x := func(i int) float64 { return left + step*(float64(i)+0.5) }
	for ratio := 0.0; ratio <= highest; ratio += 0.2 {
		d.line(left, y(ratio), d.width-right, y(ratio), `class="grid"`)
		d.text(left-8, y(ratio)+4, "small", "end", fmt.Sprintf("%.1f", ratio))
	}
	for i, s := range r.Sizes {
		d.text(x(i), d.height-bottom+20, "", "middle", count(s.Services))
	}
	d.text(left+(d.width-left-right)/2, d.height-12, "small", "middle", "Services; bars are 95% intervals of the pairs")
	for n, name := range full {
		var points []string
		shift := float64(n-1) * 7 // so that bars don't hide each other
		for i, s := range r.Sizes {
			if len(s.Connects[name].VIP.Rates) == 0 {
				continue
			}
			of := ratioOf(s.Connects[name].VIP.Rates, s.Connects[firsthop].Bare.Rates)
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(i)+shift, y(of.Mean)))
			d.line(x(i)+shift, y(of.Low), x(i)+shift, y(of.High), fmt.Sprintf(`stroke="%s" stroke-width="3"`, colours[name]))
			fmt.Fprintf(d, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", x(i)+shift, y(of.Mean), colours[name])
		}
		fmt.Fprintf(d, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" opacity=\"0.7\"/>\n", strings.Join(points, " "), colours[name])
	}
	return d.end()
}

// bar is one group of bars: a figure of each contender.
type bar struct {
	what, unit string
	of         map[string]float64
}

// CostsSVG shows what changes, starts and memory cost.
func CostsSVG(r Result) string {
	var at Size
	for _, s := range r.Sizes {
		if s.Many != nil {
			at = s
		}
	}
	groups := barsOf(at)
	const left, right, top, row, gap = 250.0, 90.0, 70.0, 15.0, 14.0
	bars := 0
	for _, g := range groups {
		bars += len(g.of)
	}
	d := newDrawing(760, top+float64(bars)*row+float64(len(groups))*gap+10, "With "+count(at.Services)+" Services: less is better")
	d.legend(16, 48, contenders)
	y := top
	for _, g := range groups {
		most := 0.0
		for _, v := range g.of {
			most = max(most, v)
		}
		d.text(left-12, y+float64(len(g.of))*row/2+3, "", "end", g.what)
		for _, name := range contenders {
			v, there := g.of[name]
			if !there {
				continue
			}
			width := max(2, v/most*(d.width-left-right))
			fmt.Fprintf(d, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" fill=\"%s\"/>\n", left, y, width, row-3, colours[name])
			d.text(left+width+6, y+row-4, "small", "start", figure(v)+" "+g.unit)
			y += row
		}
		y += gap
	}
	return d.end()
}

func barsOf(s Size) []bar {
	each := func(of func(name string) float64) map[string]float64 {
		m := map[string]float64{}
		for _, name := range contenders {
			if v := of(name); !math.IsNaN(v) && v != 0 {
				m[name] = v
			}
		}
		return m
	}
	change := func(q float64) map[string]float64 {
		return each(func(name string) float64 { return 1000 * quantile(seconds(s.Changes[name]), q) })
	}
	start := func(of func(Start) float64) map[string]float64 {
		return each(func(name string) float64 { return quantile(values(s.Starts[name], of), 0.5) })
	}
	if s.Many == nil {
		return nil
	}
	return []bar{
		{"first connect after a change, p50", "ms", change(0.5)},
		{"first connect after a change, p99", "ms", change(0.99)},
		{"all programmed, from the start", "s", start(func(st Start) float64 { return st.FromExec })},
		{"all programmed, from sync", "s", start(func(st Start) float64 { return st.FromSync })},
		{"CPU to start", "s", start(func(st Start) float64 { return st.CPU })},
		{fmt.Sprintf("CPU for %s changes", count(s.Many.Changes)), "s", each(func(name string) float64 { return s.Many.CPU[name] })},
		{"peak memory", "MiB", each(func(name string) float64 { return s.Memory[name].Peak })},
	}
}

// figure is a number with as many digits as matter.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 1:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2g", v)
}
