package lab

import (
	"log/slog"
	"strings"
	"sync"
)

// Log keeps what is written to it, and may be read meanwhile.
type Log struct {
	mu sync.Mutex
	b  strings.Builder
}

// NewLog makes a logger that writes text into a Log.
func NewLog() (*slog.Logger, *Log) {
	l := &Log{}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Count is how often a text was written.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }
