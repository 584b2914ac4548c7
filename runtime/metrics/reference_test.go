package metrics

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/runtime/sockets"
)

var update = flag.Bool("update", false, "write docs/reference/metrics.md anew")

// TestReference: docs/reference/metrics.md has every family that the page can have, with its type, labels and help.
func TestReference(t *testing.T) {
	cfg := whole()
	cfg.Sockets = func() sockets.Status { return sockets.Status{} }
	type family struct {
		name, kind, help string
		labels           []string
	}
	var families []*family
	m := New(cfg)
	m.Answered("/healthz", 200)
	m.Answered("/livez", 200)
	for line := range strings.Lines(string(m.Page())) {
		line = strings.TrimSpace(line)
		if help, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, text, _ := strings.Cut(help, " ")
			families = append(families, &family{name: name, help: text})
			continue
		}
		f := families[len(families)-1]
		if kind, ok := strings.CutPrefix(line, "# TYPE "+f.name+" "); ok {
			f.kind = kind
			continue
		}
		_, labels, _ := strings.Cut(line, "{")
		labels, _, _ = strings.Cut(labels, "} ")
		for part := range strings.SplitSeq(labels, `",`) {
			if name, _, ok := strings.Cut(part, "="); ok && name != "le" && !slices.Contains(f.labels, name) {
				f.labels = append(f.labels, name)
			}
		}
	}
	slices.SortFunc(families, func(a, b *family) int { return cmp.Compare(a.name, b.name) })
	var b bytes.Buffer
	b.WriteString("<!-- Made from the program: go test ./runtime/metrics -run TestReference -update. A test compares. -->\n\n# Metrics\n\n")
	b.WriteString("At `--metrics-bind-address`, in Prometheus' text format. [Metrics](../metrics.md) has which are worth an alert, and kube-proxy's that are not here.\n\n")
	b.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, f := range families {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.kind, strings.Join(f.labels, ", "), strings.ReplaceAll(f.help, "|", `\|`))
	}
	if len(families) < 50 {
		t.Errorf("only %d families", len(families))
	}
	const file = "../../docs/reference/metrics.md"
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, b.Bytes()) {
		t.Errorf("docs/reference/metrics.md is not what the page has (%v): go test ./runtime/metrics -run TestReference -update", err)
	}
}
