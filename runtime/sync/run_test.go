package sync

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/writer"
	"github.com/firsthop/firsthop/test/lab"
)

// To double the table once may not be enough.
func TestRunGrowsUntilAllServicesAreIn(t *testing.T) {
	r := newRig(t)
	r.f.MaxFrontends = 4
	r.l.cfg.Grow = func(_ context.Context, short writer.Short) error {
		if short != writer.ShortFrontends {
			t.Errorf("asked to grow %b, want the frontends alone", short)
		}
		locked(r.f, func() int { r.f.MaxFrontends *= 2; return 0 })
		r.l.cfg.Writer.SetStore(r.f)
		return nil
	}
	for i := range 10 {
		name := fmt.Sprint("s", i)
		r.tell(service(name, fmt.Sprint("10.96.1.", i), 80, corev1.ProtocolTCP), slice(name, 80, corev1.ProtocolTCP, "10.0.0.1"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	r.syncAll()
	for i := range 10 {
		front := fmt.Sprintf("10.96.1.%d:80", i)
		lab.Await(t, front+" is served", func() bool { return r.goes(front, bpf.TCP) == "[10.0.0.1:80]" })
	}
}

func TestFlushDoneAfterAllInputsAreKnown(t *testing.T) {
	r := newRig(t)
	r.flush()
	if done := published[FlushDone](r); len(done) > 0 {
		t.Error("before all inputs are known")
	}
	r.syncAll()
	r.flush()
	if done := published[FlushDone](r); len(done) != 1 || done[0].Err != nil {
		t.Errorf("after a write: %v", done)
	}
}
