package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/firsthop/firsthop/test/kube/bench/wire"
)

// connector is a process that connects as it is told. It is for one goroutine.
type connector struct {
	t   testing.TB
	in  *json.Encoder
	out *json.Decoder
}

// startConnector starts a prepared command and lets it end with the test.
func startConnector(t testing.TB, cmd *exec.Cmd, start func() error) *connector {
	t.Helper()
	// Go's scheduler would interrupt a system call that it takes for a loop.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, start())
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	return &connector{t: t, in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

func (c *connector) send(req wire.Request) {
	c.t.Helper()
	must(c.t, c.in.Encode(req))
}

func (c *connector) receive() (r wire.Reply) {
	c.t.Helper()
	must(c.t, c.out.Decode(&r))
	return r
}

func (c *connector) ask(req wire.Request) wire.Reply {
	c.t.Helper()
	c.send(req)
	return c.receive()
}

// add takes a burst into the account.
func (b *Bursts) add(r wire.Reply) {
	nanos := make([]float64, len(r.Nanos))
	for i, n := range r.Nanos {
		nanos[i] = float64(n) / 1000
	}
	b.Rates = append(b.Rates, float64(r.Connects)/r.Elapsed.Seconds())
	b.P50, b.P99 = append(b.P50, quantile(nanos, 0.5)), append(b.P99, quantile(nanos, 0.99))
	for name, n := range r.Failures {
		if b.Failures == nil {
			b.Failures = map[string]int{}
		}
		b.Failures[name] += n
	}
}

// parts is in how many parts a burst is made, those of all kinds by turns: what else the machine does then meets all of
// them.
const parts = 10

// merge adds a part of a burst.
func merge(sum *wire.Reply, part wire.Reply) {
	sum.Connects += part.Connects
	sum.Elapsed += part.Elapsed
	sum.Nanos = append(sum.Nanos, part.Nanos...)
	for name, n := range part.Failures {
		if sum.Failures == nil {
			sum.Failures = map[string]int{}
		}
		sum.Failures[name] += n
	}
}

// burstOf is one burst of a round.
type burstOf struct {
	of      *Bursts
	by      *connector
	node    *contender
	targets []string
	second  bool // from the second address in even rounds, from the first in odd ones
}

// measureConnects makes bursts of all kinds by turns.
func (w *world) measureConnects(size int) map[string]Connects {
	results := map[string]*Connects{}
	vips := w.someVIPs(size, 64)
	direct := make([]string, len(oldBackends))
	for i, a := range oldBackends {
		direct[i] = fmt.Sprintf("%s:%d", a, backendPort)
	}
	var round []burstOf
	for _, k := range w.full() {
		r := &Connects{}
		results[k.name] = r
		if k.bare != nil {
			round = append(round, burstOf{&r.Bare, k.bare, k, direct, true})
		}
		round = append(round, burstOf{&r.VIP, k.client, k, vips, false}, burstOf{&r.Direct, k.client, k, direct, true})
	}
	for pair := range w.opts.Pairs {
		for _, k := range w.full() {
			k.flush()
		}
		sums := make([]wire.Reply, len(round))
		for part := range parts {
			for i := range round {
				// Forth and back: a client whose turn was just before is at an advantage, as all is in the caches.
				n := (i + pair + part/2) % len(round)
				if part%2 == 1 {
					n = len(round) - 1 - n
				}
				b := round[n]
				source := b.node.source[0]
				if b.second == (pair%2 == 0) {
					source = b.node.source[1]
				}
				merge(&sums[n], b.by.ask(wire.Request{Do: wire.Burst, Source: source.String(), Targets: b.targets, For: w.opts.Burst / parts}))
			}
		}
		for i := range round {
			round[i].of.add(sums[i])
		}
	}
	out := map[string]Connects{}
	for name, r := range results {
		out[name] = *r
	}
	return out
}

// someVIPs are addresses of Services, spread over all, the last one among them. They are of those that no change meets.
func (w *world) someVIPs(size, n int) []string {
	n = min(n, size)
	var vips []string
	for i := range n {
		vips = append(vips, target(size-1-i*(size/n)))
	}
	return vips
}
