package proof

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/test/lab"
)

// silentAtFirst gives no answer before another attempt is made beside it.
type silentAtFirst struct {
	attempts *atomic.Int32
	second   chan struct{}
	answer   connectAnswer
}

func (c silentAtFirst) connect(context.Context, connectRequest) (connectAnswer, error) {
	if c.attempts.Add(1) == 2 {
		close(c.second)
	}
	<-c.second
	return c.answer, nil
}

func (silentAtFirst) Close() error { return nil }

// Where no attempt gets anywhere, the proof still says why.
func TestProverSaysWhyWhereAttemptsOverlap(t *testing.T) {
	l := lab.New(t)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: bpf.PinsBelow(l.BPFFS)})
	if err != nil {
		t.Fatal(err)
	}
	defer seeded.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*silence)
	defer cancel()
	const why = "connect: network is unreachable"
	conn := silentAtFirst{new(atomic.Int32), make(chan struct{}), connectAnswer{Error: why}}
	p, err := Prover{Sockets: seeded.Maps.Map(bpf.MapSockRevNat), Asked: Answered}.Prove(ctx, conn, netip.MustParseAddrPort("10.96.0.1:443"))
	if err != nil || p.OK || p.Got != "" || p.Reason != why || p.Attempts < 2 || p.Millis < float64(silence/time.Millisecond) {
		t.Errorf("proof %+v, error %v, want %q as the reason", p, err, why)
	}
}
