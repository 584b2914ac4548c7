package kernel

import (
	"os"
	"strings"
	"testing"
)

// docs/kernels.md promises to list each feature and the version below which
// it is lost.
func TestProbesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Probes() {
		var rows []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "| ") && strings.Contains(line, "`"+p.Name+"`") {
				rows = append(rows, line)
			}
		}
		if len(rows) != 1 {
			t.Errorf("%s stands in %d rows of docs/kernels.md, want 1", p.Name, len(rows))
			continue
		}
		old := p.Since.Compare(mainlineFloor) < 0 && !p.Needed // nothing that we run on lacks it by its version
		if !old && !strings.Contains(rows[0], p.Since.String()) {
			t.Errorf("%s is of %s; docs/kernels.md says %s", p.Name, p.Since, rows[0])
		}
	}
}

func TestProbesAreWellDescribed(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range Probes() {
		if seen[p.Name] || p.Name == "" || strings.ToLower(p.Name) != p.Name || strings.ContainsAny(p.Name, " _,") {
			t.Errorf("the name %q is not short, stable and unique", p.Name)
		}
		seen[p.Name] = true
		if p.Sentence == "" || p.WithoutIt == "" || p.Since.IsZero() || p.run == nil {
			t.Errorf("%s lacks a description: %+v", p.Name, p.Feature)
		}
		if p.Needed && p.Since.Compare(mainlineFloor) > 0 {
			t.Errorf("%s is needed and newer than the floor", p.Name)
		}
	}
}
