package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/clients"
)

// blackhole is an address from which no answer ever comes.
const blackhole = "192.0.2.66:6443"

// proofs are the lines that describe a report's proofs.
func proofs(r *bootstrap.Report) (out []string) {
	for _, p := range r.Proofs {
		line := fmt.Sprintf("%s ok=%t got=%s", p.Service, p.OK, p.Got)
		if p.Direct {
			line += " directly"
		}
		out = append(out, line)
	}
	return out
}

func checkProofs(t *testing.T, r *bootstrap.Report, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, proofs(r)); diff != "" {
		t.Errorf("proofs (- wanted, + got):\n%s", diff)
	}
}

// TestInitGivesADeadServerNoConnection: of several servers only those that answer are used.
func TestInitGivesADeadServerNoConnection(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "a", server4)
	n.echo("tcp", "b", "127.0.0.2:6443")
	if err := n.Drop("192.0.2.66/32"); err != nil {
		t.Fatal(err)
	}
	if err := n.Unreachable("192.0.2.67/32"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, dead, why string }{
		{"refuses", "127.0.0.3:6443", "refused"},
		{"is unreachable", "192.0.2.67:6443", "no route to host"},
		{"is silent", blackhole, "no answer"},
	} {
		t.Run("one of three "+tc.name, func(t *testing.T) {
			n.T = t
			r := n.run("init", "--service-ips", vip4, "--endpoints", tc.dead+","+server4+",127.0.0.2:6443", "--persist", "off", "-o", "json").exits(0).report()
			checkProofs(t, r, vip4+" ok=true got=answered")
			if got := len(r.Services[0].Backends); got != 2 {
				t.Errorf("%d backends, want the two that live: %v", got, r.Services[0].Backends)
			}
			for _, s := range r.Servers {
				if dead := s.Endpoint.Addr.String() == tc.dead; dead == s.Used || dead && !strings.Contains(s.Reason, tc.why) {
					t.Errorf("server %+v", s)
				}
			}
			for _, e := range clients.At(client).Run(t, n.Lab, clients.TCP, vip4, "x", clients.Count(40)) {
				if e.Error != "" {
					t.Errorf("%+v", e)
				}
			}
			n.run("status").exits(0).says(tc.dead, "dead")
		})
	}
}

// TestProveFailedLeavesNothing: a first init that can't prove itself takes everything back.
func TestProveFailedLeavesNothing(t *testing.T) {
	for _, endpoints := range []string{servers, blackhole + "," + server6} {
		t.Run(endpoints, func(t *testing.T) {
			n := newNode(t)
			if err := n.Drop("192.0.2.66/32"); err != nil {
				t.Fatal(err)
			}
			before := n.state()
			r := n.run("init", "--service-ips", vips, "--endpoints", endpoints, "--persist", "off", "--timeout", "500ms", "-o", "json").exits(bootstrap.ExitProof).report()
			checkProofs(t, r, vip4+" ok=false got=translated", vip6+" ok=false got=translated")
			if f := r.Failure(); f == nil || f.Step != "prove" || !strings.Contains(f.Reason, "taken back") {
				t.Errorf("failed step: %+v", f)
			}
			n.stateUnchanged(before)
			n.run("status").exits(bootstrap.ExitProof).says("not serving")
			n.run(initArgs("--timeout", "500ms", "--best-effort")...).exits(0).says("failed at prove")
			n.stateUnchanged(before)
		})
	}
}

// TestProveFailedKeepsWhatWorked: a VIP that led to a server leads there after an init that found none.
func TestProveFailedKeepsWhatWorked(t *testing.T) {
	for _, tc := range []struct {
		name string
		line []string
	}{
		{"with other endpoints", []string{"--endpoints", "127.0.0.9:6443,[::1]:6449"}},
		{"with other endpoints and programs", []string{"--endpoints", "127.0.0.9:6443,[::1]:6449", "--udp=false"}},
		{"with other endpoints and another way to attach", []string{"--endpoints", "127.0.0.9:6443,[::1]:6449", "--udp=false", "--forbid-feature", "cgroup-link"}},
		{"with another Service as well", []string{"--endpoints", "127.0.0.9:6443,[::1]:6449", "--extra-service", extra4}},
		{"with one dead family", []string{"--endpoints", server4 + ",[::1]:6449"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			n.init()
			pins, table := n.tree(n.BPFFS), n.table()
			hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 4})
			n.run(initArgs(append(tc.line, "--timeout", "200ms")...)...).exits(bootstrap.ExitProof)
			n.checkServes()
			n.checkOneOfEach()
			n.samePins(pins)
			table.Generation = n.table().Generation
			n.tableUnchanged(table)
			checkHammered(t, vip4, hammer.Stop(), 10)
			n.run("status").exits(0).says("serving")
		})
	}
}

// samePins wants the same things pinned at the same places; a link that a rollback gave its former program again is as it
// was.
func (n node) samePins(before snapshot) {
	n.Helper()
	if diff := cmp.Diff(before, n.tree(n.BPFFS)); diff != "" {
		n.Errorf("pins (- before, + after):\n%s", diff)
	}
}

// TestProveTranslatedNeedsNoServer: on a control plane the API server starts after the kubelet.
func TestProveTranslatedNeedsNoServer(t *testing.T) {
	for _, line := range [][]string{{"--prove", "translated"}, {"--boot"}} {
		t.Run(strings.Join(line, " "), func(t *testing.T) {
			n := newNode(t)
			r := n.run(append(initArgs("-o", "json"), line...)...).exits(0).report()
			checkProofs(t, r, vip4+" ok=true got=translated", vip6+" ok=true got=translated")
			warned := 0
			for _, s := range r.Steps {
				if s.Step == "prove" {
					warned = len(s.Warnings)
				}
			}
			if warned != 2 {
				t.Errorf("%d warnings, want one for each Service address", warned)
			}
			n.serving() // it starts later
			n.checkServes()
		})
	}
}

func TestProveReadyAsksForReadyz(t *testing.T) {
	n := newNode(t)
	s := n.serve("one", server4)
	line := []string{"init", "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "--prove", "ready", "--timeout", "300ms", "-o", "json"}
	for _, tc := range []struct {
		name  string
		setUp func()
		code  bootstrap.ExitCode
		want  string
	}{
		{"a server that isn't ready fails it", func() { s.SetReady(false) }, bootstrap.ExitProof, " ok=false got=answered"},
		{"a ready one passes", func() { s.SetReady(true) }, 0, " ok=true got=ready"},
		{"one that wants credentials is live", func() { s.SetAnonymous(false) }, 0, " ok=true got=ready"},
		{"one that refuses fails it", s.Close, bootstrap.ExitProof, " ok=false got=translated"},
		{"one that doesn't speak TLS fails it", func() { n.echo("tcp", "plain", server4) }, bootstrap.ExitProof, " ok=false got=answered"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			tc.setUp()
			checkProofs(t, n.run(line...).exits(tc.code).report(), vip4+tc.want)
		})
	}
}

func TestProveReadyWantsAGoodStatus(t *testing.T) {
	n := newNode(t)
	for code, want := range map[int]string{403: "ok=true got=ready", 503: "ok=false got=answered", 404: "ok=false got=answered"} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			n.T = t
			n.answering(code)
			r := n.run("init", "--service-ips", vip4, "--endpoints", server4, "--persist", "off", "--prove", "ready", "--timeout", "200ms", "-o", "json")
			checkProofs(t, r.report(), vip4+" "+want)
		})
	}
}

// answering starts a TLS server that answers every request with one status.
func (n node) answering(code int) {
	n.Helper()
	ln, err := n.Listen("tcp", server4)
	if err != nil {
		n.Fatal(err)
	}
	srv := &httptest.Server{Listener: ln, Config: &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }),
		ErrorLog: log.New(io.Discard, "", 0),
	}}
	srv.StartTLS()
	n.Cleanup(srv.Close)
}
