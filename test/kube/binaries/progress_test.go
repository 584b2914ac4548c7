package binaries

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	var log strings.Builder
	p := newProgress(&log)
	fmt.Fprint(p, "internal/abi\nk8s.io/api/core/v1\nk8s.io")
	if log.Len() > 0 {
		t.Errorf("it reports at once: %s", log.String())
	}
	p.reported = p.reported.Add(-time.Hour)
	fmt.Fprint(p, "/kubernetes\n# k8s.io/x\nx.go:1:1: undefined: y\nno newline")
	if !strings.HasPrefix(log.String(), "  3 packages compiled in ") || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("it reports %q, want 3 packages, once", log.String())
	}
	if got := p.rest(); got != "# k8s.io/x\nx.go:1:1: undefined: y\nno newline" {
		t.Errorf("for an error it keeps %q", got)
	}
}
