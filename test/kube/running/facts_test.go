package running

import (
	"cmp"
	"context"
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
	// begin and end are those of the write; seen is when a watch reported it, 0 if it didn't.
	begin, end, seen int64
	version          string // of the object that was written
	usable           map[string]bool
	otherwise        string // what a connect comes to when nothing is usable: refused or dropped
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

// outages are the times when nothing kept the table: the runtime was killed, or the machine did not get on.
type outages struct {
	mu    sync.Mutex
	list  []outage // in the order of their ends
	kills int
}

type outage struct {
	what     string
	from, to int64
}

func (o *outages) add(what string, from, to int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, outage{what, from, to})
	if what == killed {
		o.kills++
	}
}

const (
	killed  = "runtime killed"
	stalled = "machine stalled"
)

// stall is how long ten milliseconds and a grace period of RCU may take on a machine that gets on; a change of the table
// waits for several of these. On an idle machine they take 20 ms together, beside busy virtual machines 100 and more.
const stall = 40 * time.Millisecond

// watchMachine notes when the machine did not get on, until the context ends.
func (o *outages) watchMachine(ctx context.Context) {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	for ctx.Err() == nil {
		from := monotonic()
		time.Sleep(10 * time.Millisecond)
		_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
		if to := monotonic(); to-from > int64(stall) {
			o.add(stalled, from+int64(stall), to)
		}
	}
}

// join makes outages that overlap one, in the order of their begins.
func (o *outages) join() {
	slices.SortFunc(o.list, func(a, b outage) int { return cmp.Compare(a.from, b.from) })
	var list []outage
	for _, out := range o.list {
		if last := len(list) - 1; last >= 0 && out.from <= list[last].to {
			list[last].to = max(list[last].to, out.to)
			if out.what == killed {
				list[last].what = killed
			}
			continue
		}
		list = append(list, out)
	}
	o.list = list
}

// served is how much of the time from a to b was none of the outages, which are joined.
func (o *outages) served(a, b int64) time.Duration {
	left := b - a
	for _, out := range o.list {
		if from, to := max(a, out.from), min(b, out.to); from < to {
			left -= to - from
		}
	}
	return time.Duration(max(0, left))
}

// sum is how long all of them took.
func (o *outages) sum(what string) time.Duration {
	sum := int64(0)
	for _, out := range o.list {
		if out.what == what {
			sum += out.to - out.from
		}
	}
	return time.Duration(sum)
}

// late is how long something that the API says may take to be true for a connect, outages aside.
const late = time.Second

// judge says what is wrong with a result, "" for nothing. A connect may find what the Service was at any time from when
// it began, less late, to when it ended.
func (h *history) judge(r probe.Result, out *outages) string {
	got := r.Server
	if ended[r.Error] {
		return h.judgeEnd(r, out)
	}
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

// ended is what a connected UDP socket is told whose backend is gone: the runtime ends it. One that has nothing to receive
// yet finds at its next datagram that it is connected no more (udp_abort and udp_sendmsg of the kernel).
var ended = map[string]bool{"recv ECONNABORTED": true, "send EDESTADDRREQ": true}

// judgeEnd says what is wrong when a socket was ended.
func (h *history) judgeEnd(r probe.Result, out *outages) string {
	for i := 1; i < len(h.facts); i++ {
		f, before := h.facts[i], h.facts[i-1]
		if f.begin > r.End || out.served(f.known(), r.Begin) > late {
			continue
		}
		for backend := range before.usable {
			if !f.usable[backend] {
				return ""
			}
		}
	}
	return "was ended, though no backend had gone"
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
		lines = append(lines, line{o.from, o.what}, line{o.to, "over: " + o.what})
	}
	for _, r := range results {
		lines = append(lines, line{r.Begin, fmt.Sprintf("connect until %s: %s%s", ms(r.End), r.Server, r.Error)})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	var text strings.Builder
	const around = int64(6 * time.Second)
	for _, l := range lines {
		if l.at > at-around && l.at < at+around/3 {
			fmt.Fprintf(&text, "\n    %s: %s", ms(l.at), l.text)
		}
	}
	return text.String()
}
