package bench

import (
	"time"

	"github.com/firsthop/firsthop/test/kube/bench/wire"
)

// long is for what takes its time on a busy machine.
const long = 10 * time.Minute

// measureStart starts a contender on a node that has nothing of it, and waits until every Service answers: first the
// one whose name is last, then each of them. The proxies write a table as a whole, so that sweep finds all of them,
// and then the former is when they were programmed; if it does not, the last one that was missing tells.
func (k *contender) measureStart(services int) Start {
	k.t.Helper()
	all := make([]string, services)
	for i := range all {
		all[i] = target(i)
	}
	k.stop()
	k.client.send(wire.Request{Do: wire.Await, Targets: all[services-1:], For: long})
	if r := k.client.receive(); !r.Started {
		k.t.Fatalf("%s: the last of %d Services answers before the start", k.name, services)
	}
	at, initTook := k.start()
	r := k.client.receive()
	if r.At == 0 {
		k.t.Fatalf("%s: the last of %d Services does not answer: %v", k.name, services, r.Failures)
	}
	programmed := r.At
	for missing, limit := all, time.Now().Add(long); ; {
		s := k.client.ask(wire.Request{Do: wire.Sweep, Targets: missing})
		if len(missing) < len(all) { // those that were missing before
			programmed = s.At
		}
		if len(s.Missing) == 0 {
			break
		}
		if time.Now().After(limit) {
			k.t.Fatalf("%s: %d of %d Services do not answer: %v", k.name, len(s.Missing), services, s.Failures)
		}
		var still []string
		for _, i := range s.Missing {
			still = append(still, missing[i])
		}
		missing = still
	}
	awaitChildren(k.t, k.proc.PID())
	start := Start{FromExec: (programmed - at).Seconds(), Init: initTook.Seconds(), CPU: cpuSeconds(k.t, k.proc.PID())}
	offset := time.Now().Add(-monotonic()) // when CLOCK_MONOTONIC was zero
	synced, err := k.syncedAt()
	must(k.t, err)
	start.FromSync = offset.Add(programmed).Sub(synced).Seconds()
	return start
}
