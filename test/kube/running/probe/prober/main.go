// Command prober reads probe.Requests, a line of JSON each, and writes probe.Results. It ends with its input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "prober:", err)
		os.Exit(1)
	}
}

func run() error {
	p := &prober{out: json.NewEncoder(os.Stdout), stops: map[int]chan struct{}{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var r probe.Request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("parse request %q: %w", lines.Bytes(), err)
		}
		if r.Stop {
			p.stop(r.ID)
			continue
		}
		stop := make(chan struct{})
		p.mu.Lock()
		p.stops[r.ID] = stop
		p.mu.Unlock()
		go p.serve(r, stop)
	}
	return lines.Err()
}

type prober struct {
	mu    sync.Mutex // of all
	out   *json.Encoder
	stops map[int]chan struct{}
}

func (p *prober) stop(id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stop := p.stops[id]; stop != nil {
		close(stop)
		delete(p.stops, id)
	}
}

func (p *prober) tell(r probe.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out.Encode(r) != nil {
		os.Exit(1) // nobody reads
	}
}

// serve makes the attempts of one request.
func (p *prober) serve(r probe.Request, stop <-chan struct{}) {
	client := newClient(r)
	defer client.close()
	every := time.Duration(r.Every) * time.Millisecond
	next := time.Now()
	for n := 0; r.Count == 0 || n < r.Count; n++ {
		if every > 0 && n > 0 {
			next = next.Add(every)
			if late := time.Since(next); late > 0 {
				next = next.Add(late) // what was missed is not made up for
			}
		}
		select {
		case <-stop:
			p.tell(probe.Result{ID: r.ID, Done: true})
			return
		case <-time.After(time.Until(next)):
		}
		res := probe.Result{ID: r.ID, Begin: monotonic()}
		reply, err := client.attempt()
		res.End = monotonic()
		if err != nil {
			res.Error = err.Error()
		} else {
			res.Server, res.Peer = reply.Local.String(), reply.Peer.String()
		}
		p.tell(res)
	}
	p.tell(probe.Result{ID: r.ID, Done: true})
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // the kernel has it
	return ts.Nano()
}
