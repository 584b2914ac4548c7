package clients_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// backend starts an echo backend for TCP and UDP on one address of a lab.
func backend(t *testing.T, l *lab.Lab, name, addr string) {
	t.Helper()
	at := netip.MustParseAddrPort(addr)
	for _, start := range []func(standin.Network, string, netip.AddrPort) (*standin.Echo, error){
		standin.StartTCPEcho, standin.StartUDPEcho,
	} {
		e, err := start(l, name, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
	}
}

func TestClientsReportTheSame(t *testing.T) {
	l := lab.New(t)
	backend(t, l, "b4", "127.0.0.1:5353")
	backend(t, l, "b6", "[::1]:5353")
	const v4, v6, mapped = "127.0.0.1:5353", "[::1]:5353", "[::ffff:127.0.0.1]:5353"

	for _, p := range clients.Programs(t) {
		for _, tc := range []struct {
			name   string
			mode   clients.Mode
			addr   string
			opts   []clients.Option
			server string
			want   clients.Exchange
		}{
			{"TCP over IPv4", clients.TCP, v4, nil, "b4", clients.Exchange{Peer: v4}},
			{"TCP over IPv6", clients.TCP, v6, nil, "b6", clients.Exchange{Peer: v6}},
			{"TCP over IPv4 by an IPv6 socket", clients.TCP, v4, []clients.Option{clients.Mapped}, "b4", clients.Exchange{Peer: mapped}},
			{"connected UDP over IPv4", clients.UDPConnected, v4, nil, "b4", clients.Exchange{Peer: v4, From: v4}},
			{"connected UDP over IPv6", clients.UDPConnected, v6, nil, "b6", clients.Exchange{Peer: v6, From: v6}},
			{"connected UDP by an IPv6 socket", clients.UDPConnected, v4, []clients.Option{clients.Mapped}, "b4", clients.Exchange{Peer: mapped, From: mapped}},
			{"unconnected UDP over IPv4", clients.UDPUnconnected, v4, nil, "b4", clients.Exchange{From: v4}},
			{"unconnected UDP over IPv6", clients.UDPUnconnected, v6, nil, "b6", clients.Exchange{From: v6}},
			{"unconnected UDP by an IPv6 socket", clients.UDPUnconnected, v4, []clients.Option{clients.Mapped}, "b4", clients.Exchange{From: mapped}},
			{"no listener for TCP", clients.TCP, "127.0.0.1:1", nil, "", clients.Exchange{Error: "connect ECONNREFUSED"}},
			{"no listener for connected UDP", clients.UDPConnected, "127.0.0.1:1", nil, "",
				clients.Exchange{Peer: "127.0.0.1:1", Error: "recvfrom ECONNREFUSED"}},
			{"no route", clients.TCP, "192.0.2.1:1", nil, "", clients.Exchange{Error: "connect ENETUNREACH"}},
		} {
			t.Run(p.Name+": "+tc.name, func(t *testing.T) {
				got := p.Run(t, l, tc.mode, tc.addr, "hello", append(tc.opts, clients.Count(2))...)
				if len(got) != 2 {
					t.Fatalf("got %d reports, want 2", len(got))
				}
				for _, e := range got {
					if e.Server() != tc.server {
						t.Errorf("answered by %q, want %q", e.Server(), tc.server)
					}
					e.Reply = ""
					if e != tc.want {
						t.Errorf("got %+v, want %+v", e, tc.want)
					}
				}
			})
		}
	}
}

func TestUnconnectedUDPKeepsItsSocket(t *testing.T) {
	l := lab.New(t)
	backend(t, l, "b4", "127.0.0.1:5353")
	for _, p := range clients.Programs(t) {
		peers := map[netip.AddrPort]bool{}
		for _, e := range p.Run(t, l, clients.UDPUnconnected, "127.0.0.1:5353", "x", clients.Count(3)) {
			r, err := standin.ParseReply([]byte(e.Reply))
			if err != nil {
				t.Fatal(err)
			}
			peers[r.Peer] = true
		}
		if len(peers) != 1 {
			t.Errorf("%s: the backend sees %d sockets, want one: %v", p.Name, len(peers), peers)
		}
	}
}

func TestNc(t *testing.T) {
	l := lab.New(t)
	backend(t, l, "b4", "127.0.0.1:5353")
	for _, udp := range []bool{false, true} {
		line, err := clients.Nc(t, l, udp, "127.0.0.1", "5353", "hello")
		if err != nil || (clients.Exchange{Reply: line}).Server() != "b4" {
			t.Errorf("udp %v: got %q, %v", udp, line, err)
		}
	}
	if line, err := clients.Nc(t, l, false, "127.0.0.1", "1", "hello"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no listener: got %q, %v", line, err)
	}
}

func TestCurl(t *testing.T) {
	l := lab.New(t)
	ca, err := standin.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	s, err := standin.StartAPIServer(standin.APIServerConfig{
		Name: "one", Addrs: []netip.AddrPort{netip.MustParseAddrPort("[::1]:6443")}, Network: l, Authority: ca,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if body, err := clients.Curl(t, l, caFile, "https://[::1]:6443/version"); err != nil || !strings.Contains(body, "+one") {
		t.Errorf("got %q, %v", body, err)
	}
	s.SetAnonymous(false)
	if body, err := clients.Curl(t, l, caFile, "https://[::1]:6443/version"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("got %q, %v; want 401", body, err)
	}
}

func TestHammerCountsEveryFailure(t *testing.T) {
	l := lab.New(t)
	backend(t, l, "b4", "127.0.0.1:5353")
	client := clients.Build(t)

	r := clients.StartHammer(t, l, client, clients.HammerConfig{Addr: "127.0.0.1:5353", Workers: 8, Do: clients.Echo}).Stop()
	if r.Connects < 8 || len(r.Failures) != 0 || r.Servers["b4"] != r.Connects || r.Slowest <= 0 {
		t.Errorf("got %+v, want some connects to b4 and no failure", r)
	}
	r = clients.StartHammer(t, l, client, clients.HammerConfig{Addr: "127.0.0.1:1", Workers: 8, Do: clients.Reset}).Stop()
	if r.Connects != 0 || r.Failures["connect ECONNREFUSED"] < 8 {
		t.Errorf("got %+v, want only refused connects", r)
	}
	// None may be lost to the client's own machine, nor be dropped by a server that is slower.
	r = clients.StartHammer(t, l, client, clients.HammerConfig{Addr: "127.0.0.1:5353", For: 2 * time.Second}).Wait()
	if r.Connects == 0 || len(r.Failures) != 0 {
		t.Errorf("got %+v, want no failure", r)
	}
	if n := tcpCounter(t, l, "ListenDrops"); n != "0" {
		t.Errorf("the server's queue dropped %s connections", n)
	}
	t.Logf("%d connects in %s, the slowest %s", r.Connects, r.Elapsed, r.Slowest)
}

// tcpCounter reads a counter of the lab's network namespace: a line of names, then a line of values.
func tcpCounter(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	out, err := l.Command(t.Context(), "cat", "/proc/net/netstat").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	i := slices.Index(names, name)
	if i < 0 {
		t.Fatalf("no counter %s in %v", name, names)
	}
	return values[i]
}

func TestFirstConnectWaitsForTheServer(t *testing.T) {
	l := lab.New(t)
	first := clients.StartFirstConnect(t, l, clients.Build(t), "127.0.0.1:5353")
	backend(t, l, "b4", "127.0.0.1:5353")
	if r := first.Wait(); r.Monotonic <= 0 || r.Failures["connect ECONNREFUSED"] == 0 {
		t.Errorf("got %+v, want failures, then a time", r)
	}
}
