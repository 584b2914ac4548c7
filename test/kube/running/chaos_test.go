package running

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

const (
	churnedServices = 200
	churners        = 3
	pause           = 20 * time.Millisecond // of a churner between two changes
	chaosEvery      = 400                   // ms between two attempts of a client, of which each family has one
)

// chaosTime is how long the storm lasts.
func chaosTime() time.Duration {
	if long() {
		return 10 * time.Minute
	}
	return 2 * time.Minute
}

// TestChaos changes 200 dual-stack Services all the time, and kills the runtime every few seconds, while clients of both
// families connect through each. No connect may reach a backend that was gone for more than a second, nor be refused while one is usable.
func TestChaos(t *testing.T) {
	s := newSite(t, 1)
	s.node.init(s.cluster.Servers)
	s.node.start()
	var list []*churned
	for i := range churnedServices {
		proto := corev1.ProtocolTCP
		if i%10 == 9 {
			proto = corev1.ProtocolUDP
			for pod := range poolSize {
				for _, port := range []uint16{firstPort, secondPort} {
					for family := range 2 {
						echoUDP(t, s.cluster.Hub, netip.AddrPortFrom(remoteAddr(family, 8*i+pod), port))
					}
				}
			}
		}
		ch := newChurned(i, proto)
		s.cluster.Apply(ch.slices[0], ch.slices[1])
		if err := ch.write(t.Context(), s.cluster, "created", ch.svc); err != nil {
			t.Fatal(err)
		}
		list = append(list, ch)
	}
	s.fence.await()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen watched
	if err := seen.follow(ctx, s.cluster); err != nil {
		t.Fatal(err)
	}
	var clients []*stream
	for _, ch := range list {
		proto := probe.TCP
		if ch.svc.Spec.Ports[0].Protocol == corev1.ProtocolUDP {
			proto = probe.UDP
		}
		for family := range 2 {
			clients = append(clients, s.pod.keep(proto, ch.target(family), chaosEvery))
		}
	}

	var out outages
	var watcher sync.WaitGroup
	watcher.Go(func() { out.watchMachine(ctx) })
	writes := s.storm(ctx, list, &out)
	s.fence.await()

	connects, bad := 0, 0
	ended := make([][]probe.Result, len(clients))
	for i, c := range clients {
		ended[i] = c.end()
	}
	cancel()
	watcher.Wait()
	out.join()
	for i, results := range ended {
		connects += len(results)
		ch, family := list[i/2], i%2
		h := &ch.histories[family]
		seen.note(h)
		for _, r := range results {
			if wrong := h.judge(r, &out); wrong != "" {
				if bad++; bad <= 5 {
					t.Errorf("%s: a connect to %s %s%s", ch.svc.Name, ch.target(family), wrong, h.timeline(r.Begin, &out, results))
				}
			}
		}
	}
	t.Logf("%d changes, %d connects, %d of them wrong; %d times, the runtime was killed; it was away for %s, and the machine for %s",
		writes, connects, bad, out.kills, out.sum(killed), out.sum(stalled))
	if bad > 5 {
		t.Errorf("%d connects were wrong; these are the first 5", bad)
	}
	s.calm(t, list)
	s.node.stop()
}

// storm changes Services and kills the runtime until its time is over. It returns the number of changes.
func (s *site) storm(ctx context.Context, list []*churned, out *outages) int {
	ctx, cancel := context.WithTimeout(ctx, chaosTime())
	defer cancel()
	var group sync.WaitGroup
	counts := make([]int, churners)
	for i := range churners {
		seed := uint64(time.Now().UnixNano()) + uint64(i)
		s.t.Logf("churner %d has seed %d", i, seed)
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for ctx.Err() == nil {
				// A Service is changed by one churner, and not in the middle of a change when the time is over.
				ch := list[r.IntN(len(list)/churners)*churners+i]
				if err := ch.turn(context.WithoutCancel(ctx), s.cluster, r); err != nil {
					s.t.Errorf("change %s: %v", ch.svc.Name, err)
					return
				}
				counts[i]++
				time.Sleep(pause)
			}
		})
	}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2))
	for {
		select {
		case <-ctx.Done():
			group.Wait()
			sum := 0
			for _, n := range counts {
				sum += n
			}
			return sum
		case <-time.After(3*time.Second + time.Duration(r.IntN(4000))*time.Millisecond):
		}
		from := monotonic()
		s.node.run.Kill()
		s.node.start()
		out.add(killed, from, s.node.awaitSynced())
	}
}

// awaitSynced waits until the runtime has read all that it writes from, and returns when that was.
func (n *node) awaitSynced() int64 {
	n.t.Helper()
	var at int64
	eventually(n.t, "wait until the runtime has synced", func() string {
		at = 0
		data, err := os.ReadFile(n.run.Log)
		if err != nil {
			return err.Error()
		}
		missing := map[string]bool{"services": true, "endpointslices": true, "nodes": true}
		for line := range strings.Lines(string(data)) {
			for res := range missing {
				if strings.Contains(line, `msg="a list is complete" resource=`+res+" ") {
					at = max(at, monotonicOf(n.t, line))
					delete(missing, res)
				}
			}
		}
		if len(missing) > 0 {
			return fmt.Sprintf("the log of %s does not mention %v", n.run.Log, missing)
		}
		return ""
	})
	return at
}

// monotonicOf is the time of a line of the log by the monotonic clock, not before it.
func monotonicOf(t testing.TB, line string) int64 {
	text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return monotonic() - int64(time.Since(at)) + int64(time.Millisecond)
}

// calm looks whether every Service is what it should be, in the end.
func (s *site) calm(t *testing.T, list []*churned) {
	wrong := 0
	for _, ch := range list {
		for family := range 2 {
			wrong += s.calmAt(t, ch, family)
		}
		if wrong > 10 {
			return
		}
	}
}

func (s *site) calmAt(t *testing.T, ch *churned, family int) (wrong int) {
	proto := probe.TCP
	if ch.svc.Spec.Ports[0].Protocol == corev1.ProtocolUDP {
		proto = probe.UDP
	}
	usable, otherwise := ch.usable(family, false)
	reached := map[string]bool{}
	for _, r := range s.pod.ask(proto, ch.target(family), 30) {
		switch {
		case r.Error != "" && (len(usable) > 0 || outcomes[r.Error] != otherwise), r.Error == "" && !usable[r.Server]:
			wrong++
			t.Errorf("%s: in the end, %s%s is reached: want %v or %s", ch.svc.Name, r.Server, r.Error, usable, otherwise)
		}
		if r.Error == "" {
			reached[r.Server] = true
		}
	}
	if sticky := ch.svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP; !sticky && len(reached) != len(usable) {
		// Of four backends, one stays unseen in thirty attempts with a probability of 0.0007.
		for _, r := range s.pod.ask(proto, ch.target(family), 100) {
			reached[r.Server] = r.Error == ""
		}
		if len(reached) != len(usable) {
			t.Errorf("%s: in the end, %v are reached, want %v", ch.svc.Name, reached, usable)
		}
	}
	return wrong
}
