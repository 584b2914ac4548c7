package apihealth

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

func TestMonitorBoundsWhatItRemembers(t *testing.T) {
	r := newRig(t)
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 * maxFormer {
		e := endpoints(t, fmt.Sprintf("192.0.2.11:%d", 1+i))[0]
		m.remember(&target{Named: apiserver.Named{Endpoint: e}, lastLive: time.Now()})
		m.remember(&target{Named: apiserver.Named{Endpoint: e}, lastLive: time.Now()})
		m.remember(&target{Named: apiserver.Named{Endpoint: endpoints(t, a2)[0]}}) // never lived
	}
	if n := len(m.former); n != maxFormer || m.former[n-1].Addr.Port() != 10*maxFormer {
		t.Errorf("%d are remembered, the last is %+v", n, m.former[n-1])
	}
}

func TestMonitorBoundsItsSockets(t *testing.T) {
	r := newRig(t)
	var list []string
	for port := range 3 * maxProbing {
		list = append(list, fmt.Sprintf("192.0.2.11:%d", 7000+port))
	}
	var now, most atomic.Int32
	r.cfg.Timeout = 50 * time.Millisecond
	r.cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-ctx.Done()
		now.Add(-1)
		return nil, ctx.Err()
	}
	r.run().SetEndpoints(addrs(list...))
	r.until("all asked", func(s Status) bool {
		for _, e := range s.Endpoints {
			if e.State == apiserver.Unknown {
				return false
			}
		}
		return len(s.Endpoints) == len(list)
	})
	if n := most.Load(); n > maxProbing || n < maxProbing/2 {
		t.Errorf("%d at a time", n)
	}
}
