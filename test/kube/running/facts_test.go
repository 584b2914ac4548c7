package running

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// monotonic is the clock of probe.Result.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // the kernel has it
	return ts.Nano()
}

// fact is what a Service was from one write to the API on.
type fact struct {
	what string
	// begin and end are those of the write; seen is when a watch told of it, 0 if it didn't.
	begin, end, seen int64
	version          string // of the object that was written
	usable           map[string]bool
	otherwise        string // what a connect comes to when nothing is usable: refused, dropped or unserved
}

// known is when everybody knew of a fact.
func (f fact) known() int64 { return max(f.end, f.seen) }

// history is what a Service was, in the order of time.
type history struct {
	mu    sync.Mutex
	facts []fact
}

func (h *history) add(f fact) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.facts = append(h.facts, f)
}

// outages are the times when nothing kept the table, in the order of time.
type outages struct {
	mu   sync.Mutex
	list [][2]int64 // from, to
}

func (o *outages) add(from, to int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, [2]int64{from, to})
}

// served is how much of the time from a to b was none of outages.
func (o *outages) served(a, b int64) time.Duration {
	left := b - a
	for _, out := range o.list {
		if from, to := max(a, out[0]), min(b, out[1]); from < to {
			left -= to - from
		}
	}
	return time.Duration(max(0, left))
}

// late is how long something that the API says may take to be true for a connect, outages aside.
const late = time.Second

// judge says what is wrong with a result, "" for nothing. A connect may find what the Service was at any time from when
// it began, less late, to when it ended.
func (h *history) judge(r probe.Result, out *outages) string {
	got := r.Server
	if r.Error != "" {
		if got = outcomes[r.Error]; got == "" {
			return r.Error
		}
	}
	last := ""
	for i := len(h.facts) - 1; i >= 0; i-- {
		f := h.facts[i]
		if f.begin > r.End {
			continue
		}
		// From when on the next fact was known, this one was over.
		over := r.Begin
		if i+1 < len(h.facts) {
			over = h.facts[i+1].known()
		}
		since := out.served(over, r.Begin)
		allowed := f.usable[got]
		if len(f.usable) == 0 {
			allowed = got == f.otherwise
		}
		if since <= late && allowed {
			return ""
		}
		if allowed {
			last = fmt.Sprintf("; that was over for %s", since.Round(time.Millisecond))
			break
		}
	}
	return fmt.Sprintf("came to %s%s", got, last)
}

// timeline is what happened around a time, for people.
func (h *history) timeline(at int64, out *outages, results []probe.Result) string {
	type line struct {
		at   int64
		text string
	}
	var lines []line
	ms := func(t int64) string { return fmt.Sprintf("%+.1f ms", float64(t-at)/1e6) }
	for _, f := range h.facts {
		to := strings.Join(slices.Sorted(maps.Keys(f.usable)), " ")
		if to == "" {
			to = f.otherwise
		}
		lines = append(lines, line{f.begin, fmt.Sprintf("API: %s, written at %s, watched at %s: %s", f.what, ms(f.end), ms(f.seen), to)})
	}
	for _, o := range out.list {
		lines = append(lines, line{o[0], "runtime killed"}, line{o[1], "runtime synced"})
	}
	for _, r := range results {
		lines = append(lines, line{r.Begin, fmt.Sprintf("connect until %s: %s%s", ms(r.End), r.Server, r.Error)})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return int(min(1, max(-1, a.at-b.at))) })
	var text strings.Builder
	const around = int64(6 * time.Second)
	for _, l := range lines {
		if l.at > at-around && l.at < at+around/3 {
			fmt.Fprintf(&text, "\n    %s: %s", ms(l.at), l.text)
		}
	}
	return text.String()
}
