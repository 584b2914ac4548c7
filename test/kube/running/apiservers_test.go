package running

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// out is within what time an API server that is dead is not chosen any more.
const outWithin = 2 * time.Second

// chosen are the API servers that the API service leads to on the node.
func (n *node) chosen() []string {
	n.t.Helper()
	var list []string
	for _, e := range n.table() {
		if slices.Contains(e.Frontends, "tcp/"+vip) {
			for _, b := range e.Backends {
				list = append(list, b.String())
			}
		}
	}
	return list
}

// awaitChosen waits until an API server is chosen.
func (n *node) awaitChosen(s *cluster.Server) {
	n.t.Helper()
	began := time.Now()
	eventually(n.t, "wait for the API server to be chosen", func() string {
		if list := n.chosen(); !slices.Contains(list, s.Address.String()) {
			return fmt.Sprintf("%s is not among %v", s.Address, list)
		}
		return ""
	})
	n.t.Logf("%s was chosen after %s", s.Address, time.Since(began).Round(time.Millisecond))
}

// loses waits until an API server is not chosen any more, and tells whether that was in time.
func (n *node) loses(t *testing.T, s *cluster.Server, since time.Time) bool {
	t.Helper()
	late := false
	eventually(t, "wait for the API server to be out", func() string {
		asked := time.Since(since)
		list := n.chosen()
		if !slices.Contains(list, s.Address.String()) {
			t.Logf("%s was out after at most %s", s.Address, time.Since(since).Round(time.Millisecond))
			return ""
		}
		if asked > outWithin {
			late = true
			t.Logf("after %s, %s is still among %v", asked, s.Address, list)
		}
		return fmt.Sprint(list)
	})
	return !late
}

// mustConnect fails the test if a connect to the API service does not succeed.
func (s *site) mustConnect(t *testing.T) {
	t.Helper()
	for _, p := range []*prober{s.host, s.pod} {
		if bad := failures(p.ask(probe.Connect, vip, 60)); bad != "" {
			t.Error("connects to the API service:", bad)
		}
	}
}

func TestAPIServers(t *testing.T) {
	s := newSite(t, 3)
	s.node.init(s.cluster.Servers)
	s.node.start()
	svc := s.service("web", 1, 2, 3)
	s.fence.await()
	for _, server := range s.cluster.Servers {
		s.node.awaitChosen(server)
	}

	for _, tc := range []struct {
		name           string
		server         int
		leave, recover func(*cluster.Server)
	}{
		{"one that is killed is out within two seconds, and in again when it is back", 1,
			func(s *cluster.Server) { s.Kill() }, func(s *cluster.Server) { s.Start() }},
		{"one that falls silent is out within two seconds, and in again when it is back", 2,
			func(s *cluster.Server) { s.Vanish() }, func(s *cluster.Server) { s.Appear() }},
		{"one that hangs is out within two seconds, and in again when it is back", 1,
			func(s *cluster.Server) { s.Pause() }, func(s *cluster.Server) { s.Resume() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := s.cluster.Servers[tc.server]
			for inTime, tries := false, 0; !inTime; tries++ {
				if tries == 3 { // a busy machine is late once, not always
					t.Fatal("it is not out in time")
				}
				tc.leave(server)
				inTime = s.node.loses(t, server, time.Now())
				s.mustConnect(t)
				s.fence.await()
				tc.recover(server)
				s.node.awaitChosen(server)
				s.mustConnect(t)
			}
		})
	}

	t.Run("all are down: what is served is served on, and changes are followed when one is back", func(t *testing.T) {
		clients := s.load(svc)
		s.killAll()
		down := 5 * time.Second
		if long() {
			down = 5 * time.Minute
		}
		for until := time.Now().Add(down); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			if list := s.node.chosen(); len(list) == 0 {
				t.Fatal("the API service was left empty")
			}
		}
		s.cluster.Servers[0].Start()
		s.fence.await()
		clients.end(t)
		s.startAll()
	})

	t.Run("a runtime that starts while all are down serves what the table holds, and follows when they come", func(t *testing.T) {
		before := s.indexes()
		clients := s.load(svc)
		s.killAll()
		s.node.run.Kill()
		s.node.start()
		eventually(t, "wait until the runtime has taken over", func() string {
			if log := s.node.log(); !strings.Contains(log, "took over") {
				return log
			}
			return ""
		})
		for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			if after := s.indexes(); len(after) != len(before) {
				t.Fatalf("the table has %v, had %v", after, before)
			}
		}
		s.cluster.Servers[0].Start()
		s.fence.await()
		clients.end(t)
		s.startAll()
	})
	s.node.stop()

	t.Run("they moved while the runtime was down: a changed kubeconfig tells where they are", func(t *testing.T) {
		old, now := s.cluster.Servers[1], s.cluster.Servers[2]
		s.useNode("by-kubeconfig")
		s.node.init([]*cluster.Server{old})
		old.Kill()
		s.node.kubeconfig = s.cluster.Kubeconfig(s.cluster.ServiceAccount("kube-system", "firsthop", role), now.URL())
		s.node.start()
		s.fence.await()
		s.node.awaitChosen(now)
		s.mustConnect(t)
		s.node.stop()
		old.Start()
	})

	t.Run("they moved while the runtime was down: their name tells where they are", func(t *testing.T) {
		old, now := s.cluster.Servers[1], s.cluster.Servers[2]
		s.useNode("by-name")
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		point := func(to *cluster.Server) {
			line := to.Address.Addr().String() + " api.example.test\n"
			if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte(line), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		point(old)
		args := []string{"--root=" + root, "--endpoints=api.example.test:6443"}
		if out, code := s.node.command(append([]string{"init", "--service-ips=" + vip}, args...)...); code != 0 {
			t.Fatalf("firsthop init: exit code %d\n%s", code, out)
		}
		old.Kill()
		point(now)
		s.node.start(args...)
		s.fence.await()
		s.node.awaitChosen(now)
		s.mustConnect(t)
		// And back, while it runs.
		old.Start()
		point(old)
		now.Kill()
		s.fence.await()
		s.node.awaitChosen(old)
		s.mustConnect(t)
		s.node.stop()
	})
}

func (s *site) killAll() {
	for _, server := range s.cluster.Servers {
		server.Kill()
	}
}

// startAll starts those that don't run.
func (s *site) startAll() {
	for _, server := range s.cluster.Servers {
		select {
		case <-server.Done():
			server.Start()
		default:
		}
		s.node.awaitChosen(server)
	}
}
