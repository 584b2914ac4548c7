package binaries

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// progressEvery is how often a build says how far it is.
const progressEvery = 10 * time.Second

// progress takes what go prints on standard error. It counts the packages and modules that -v and downloads name, says
// now and then how many there were, and keeps all else for an error message.
type progress struct {
	log      io.Writer // nil: counts nothing
	began    time.Time
	reported time.Time
	compiled int
	line     []byte // incomplete
	kept     bytes.Buffer
}

func newProgress(log io.Writer) *progress {
	now := time.Now()
	return &progress{log: log, began: now, reported: now}
}

// packageLine is what `go build -v` prints of each package that it compiles.
var packageLine = regexp.MustCompile(`^[A-Za-z0-9][^ :]*$`)

// Write implements io.Writer.
func (p *progress) Write(data []byte) (int, error) {
	p.line = append(p.line, data...)
	for {
		line, rest, ok := bytes.Cut(p.line, []byte("\n"))
		if !ok {
			return len(data), nil
		}
		p.line = rest
		p.take(string(line))
	}
}

func (p *progress) take(line string) {
	if p.log == nil || !packageLine.MatchString(line) {
		p.kept.WriteString(line + "\n")
	} else {
		p.compiled++
	}
	now := time.Now()
	if p.log == nil || now.Sub(p.reported) < progressEvery {
		return
	}
	p.reported = now
	fmt.Fprintf(p.log, "  %d packages compiled in %s\n", p.compiled, now.Sub(p.began).Round(time.Second))
}

// rest is what go said beside the names of packages.
func (p *progress) rest() string { return strings.TrimSpace(p.kept.String() + string(p.line)) }
