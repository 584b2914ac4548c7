package running

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// prober is a client that runs on a machine.
type prober struct {
	t  testing.TB
	in io.WriteCloser

	mu     sync.Mutex // of all below, and of in
	next   int
	sinks  map[int]func(probe.Result)
	closed bool
}

// newProber starts a prober. It ends with the test.
func newProber(t testing.TB, m clients.Machine) *prober {
	t.Helper()
	p := &prober{t: t, sinks: map[int]func(probe.Result){}}
	cmd := m.Command(context.Background(), program(t, "prober"))
	var err error
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("start prober:", err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(out)
	}()
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.in.Close()
		p.mu.Unlock()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Error("prober:", err)
		}
	})
	return p
}

func (p *prober) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var r probe.Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			p.t.Errorf("prober printed %q: %v", lines.Bytes(), err)
			continue
		}
		p.mu.Lock()
		sink := p.sinks[r.ID]
		if r.Done {
			delete(p.sinks, r.ID)
		}
		p.mu.Unlock()
		if sink != nil {
			sink(r)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, sink := range p.sinks { // it has died: nobody is to wait endlessly
		sink(probe.Result{ID: id, Error: "prober ended"})
		sink(probe.Result{ID: id, Done: true})
	}
	clear(p.sinks)
}

// begin sends a request. sink gets each result, by one goroutine at a time, the last of which is Done.
func (p *prober) begin(r probe.Request, sink func(probe.Result)) (id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	r.ID = p.next
	p.sinks[r.ID] = sink
	p.send(r)
	return r.ID
}

func (p *prober) send(r probe.Request) {
	if p.closed {
		return
	}
	if err := json.NewEncoder(p.in).Encode(r); err != nil {
		p.t.Error("ask prober:", err)
	}
}

// ask makes attempts and returns their results.
func (p *prober) ask(proto probe.Proto, target string, count int) []probe.Result {
	var list []probe.Result
	done := make(chan struct{})
	p.begin(probe.Request{Proto: proto, Target: target, Count: count}, func(r probe.Result) {
		if r.Done {
			close(done)
			return
		}
		list = append(list, r)
	})
	<-done
	return list
}

// stream is a request that goes on until it is ended. Its results are kept.
type stream struct {
	p    *prober
	id   int
	what string
	done chan struct{}

	mu   sync.Mutex
	list []probe.Result
}

// keep makes attempts until end.
func (p *prober) keep(proto probe.Proto, target string, every int) *stream {
	return p.follow(probe.Request{Proto: proto, Target: target, Every: every})
}

// follow is keep for any request.
func (p *prober) follow(r probe.Request) *stream {
	s := &stream{p: p, what: fmt.Sprintf("%s %s", r.Proto, r.Target), done: make(chan struct{})}
	s.id = p.begin(r, func(r probe.Result) {
		if r.Done {
			close(s.done)
			return
		}
		s.mu.Lock()
		s.list = append(s.list, r)
		s.mu.Unlock()
	})
	return s
}

// results are those so far.
func (s *stream) results() []probe.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// end ends the attempts and returns the results of all.
func (s *stream) end() []probe.Result {
	s.p.mu.Lock()
	s.p.send(probe.Request{ID: s.id, Stop: true})
	s.p.mu.Unlock()
	<-s.done
	return s.results()
}

// failures are those among results, with their number.
func failures(list []probe.Result) string {
	count := map[string]int{}
	for _, r := range list {
		if r.Error != "" {
			count[r.Error]++
		}
	}
	var out []string
	for what, n := range count {
		out = append(out, fmt.Sprintf("%d × %s", n, what))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
