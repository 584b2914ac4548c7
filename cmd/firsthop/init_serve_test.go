package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/proof"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

const (
	dns4, dns6 = "10.96.0.10:53", "[fd00:96::a]:53"
	extra4     = "udp/" + dns4 + "=127.0.0.1:5353"
	extra6     = "udp/" + dns6 + "=[::1]:5353"
)

// echo starts an echo backend over TCP or UDP.
func (n node) echo(network, name, addr string) *standin.Echo {
	n.Helper()
	start := standin.StartTCPEcho
	if network == "udp" {
		start = standin.StartUDPEcho
	}
	e, err := start(n.Lab, name, netip.MustParseAddrPort(addr))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(e.Close)
	return e
}

// mapped is an IPv4 address as an IPv6 socket writes it.
func mapped(addr string) string {
	a := netip.MustParseAddrPort(addr)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
}

func TestInitServesEveryClient(t *testing.T) {
	for _, how := range []struct {
		name   string
		inside bool
	}{{"init outside of the cgroup", false}, {"init inside of the cgroup", true}} {
		t.Run(how.name, func(t *testing.T) {
			n := newNode(t)
			n.inside = how.inside
			n.echo("tcp", "b4", server4)
			n.echo("tcp", "b6", server6)
			n.echo("udp", "d4", "127.0.0.1:5353")
			n.echo("udp", "d6", "[::1]:5353")
			r := n.run(varVIPs+"="+vips, varServer+"="+servers, "init", "--persist", "off", "-o", "json",
				"--extra-service", extra4, "--extra-service", extra6).exits(0).report()
			checkHappyReport(t, r)
			n.checkPrograms()
			n.checkNcat()
			n.checkOutside()
		})
	}
}

// checkHappyReport wants a report in which all is well.
func checkHappyReport(t *testing.T, r *bootstrap.Report) {
	t.Helper()
	var steps []string
	for _, s := range r.Steps {
		steps = append(steps, s.Step)
		if s.Reason == "" || s.ExitCode != 0 || s.Result != bootstrap.OK && s.Step != "persist" {
			t.Errorf("step %s: %+v", s.Step, s)
		}
	}
	if got := strings.Join(steps, " "); got != "settings lock kernel bpffs cgroup2 discover seed attach prove persist" {
		t.Errorf("the steps are %s", got)
	}
	if len(r.Hooks) != 8 || len(r.Services) != 4 || len(r.Proofs) != 2 || !r.Proven() || r.Result != bootstrap.OK || r.ExitCode != 0 {
		t.Errorf("%d hooks, %d Services, proofs %+v, %s", len(r.Hooks), len(r.Services), r.Proofs, r.Result)
	}
	for _, s := range r.Servers {
		if s.State != "live" || !s.Used || s.Millis <= 0 {
			t.Errorf("server %+v, want it live, used, and with its latency", s)
		}
	}
	if !strings.Contains(r.AfterReboot, "nothing survives a reboot") {
		t.Errorf("after a reboot: %q", r.AfterReboot)
	}
}

// checkPrograms connects from Go and Python, over both families, with connected and unconnected sockets.
func (n node) checkPrograms() {
	n.Helper()
	useMapped := []clients.Option{clients.Mapped}
	for _, p := range []clients.Program{clients.At(client), clients.Python(n.T)} {
		for _, tc := range []struct {
			name   string
			mode   clients.Mode
			addr   string
			opts   []clients.Option
			server string
			want   clients.Exchange
		}{
			{"TCP over IPv4", clients.TCP, vip4, nil, "b4", clients.Exchange{Peer: vip4}},
			{"TCP over IPv6", clients.TCP, vip6, nil, "b6", clients.Exchange{Peer: vip6}},
			{"TCP over IPv4 by an IPv6 socket", clients.TCP, vip4, useMapped, "b4", clients.Exchange{Peer: mapped(vip4)}},
			{"connected UDP over IPv4", clients.UDPConnected, dns4, nil, "d4", clients.Exchange{Peer: dns4, From: dns4}},
			{"connected UDP over IPv6", clients.UDPConnected, dns6, nil, "d6", clients.Exchange{Peer: dns6, From: dns6}},
			{"connected UDP by an IPv6 socket", clients.UDPConnected, dns4, useMapped, "d4", clients.Exchange{Peer: mapped(dns4), From: mapped(dns4)}},
			{"unconnected UDP over IPv4", clients.UDPUnconnected, dns4, nil, "d4", clients.Exchange{From: dns4}},
			{"unconnected UDP over IPv6", clients.UDPUnconnected, dns6, nil, "d6", clients.Exchange{From: dns6}},
			{"unconnected UDP by an IPv6 socket", clients.UDPUnconnected, dns4, useMapped, "d4", clients.Exchange{From: mapped(dns4)}},
			{"an unserved port of the VIP", clients.TCP, "10.96.0.1:444", nil, "", clients.Exchange{Error: "connect ECONNREFUSED"}},
		} {
			for _, e := range p.Run(n.T, n.Lab, tc.mode, tc.addr, "hello", append(tc.opts, clients.Count(2))...) {
				server := e.Server()
				e.Reply = ""
				if server != tc.server || e != tc.want {
					n.Errorf("%s, %s: answered by %q, %+v; want %q, %+v", p.Name, tc.name, server, e, tc.server, tc.want)
				}
			}
		}
	}
}

func (n node) checkNcat() {
	n.Helper()
	for _, tc := range []struct {
		udp    bool
		addr   string
		server string
	}{{false, vip4, "b4"}, {false, vip6, "b6"}, {true, dns4, "d4"}, {true, dns6, "d6"}} {
		host, port, _ := net.SplitHostPort(tc.addr)
		got, err := clients.Nc(n.T, n.Lab, tc.udp, host, port, "hello")
		if err != nil {
			n.Errorf("ncat to %s: %v", tc.addr, err)
			continue
		}
		if reply, err := standin.ParseReply([]byte(got)); err != nil || reply.Server != tc.server || strings.TrimSpace(reply.Data) != "hello" {
			n.Errorf("ncat to %s: %q, %v; want an answer by %s", tc.addr, got, err, tc.server)
		}
	}
}

// checkOutside connects from the same network namespace, but from outside of the cgroup: there is no route to a VIP.
func (n node) checkOutside() {
	n.Helper()
	for _, addr := range []string{vip4, vip6} {
		if conn, err := n.DialContext(n.Context(), "tcp", addr); err == nil {
			conn.Close()
			n.Errorf("a process outside of the cgroup reaches %s", addr)
		}
	}
}

func TestInitServesCurl(t *testing.T) {
	n := newNode(t)
	n.serving()
	r := n.init("--prove", "ready")
	for _, p := range r.Proofs {
		if p.Got != proof.Ready {
			t.Errorf("proof %+v, want ready", p)
		}
	}
	for _, url := range []string{"https://10.96.0.1/version", "https://[fd00:96::1]/version"} {
		body, err := clients.Curl(t, n.Lab, filepath.Join(n.Dir, "ca.crt"), url)
		var v struct{ GitVersion string }
		if err != nil || json.Unmarshal([]byte(body), &v) != nil || v.GitVersion != "v1.36.3+one" {
			t.Errorf("curl %s: %v\n%s", url, err, body)
		}
	}
}

// TestInitWithOneFamily: a cluster with one family has the hooks of both, as IPv6 sockets reach IPv4 addresses.
func TestInitWithOneFamily(t *testing.T) {
	for _, tc := range []struct{ name, vip, server string }{{"IPv4", vip4, server4}, {"IPv6", vip6, server6}} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.echo("tcp", "one", tc.server)
			r := n.run("init", "--service-ips", tc.vip, "--endpoints", tc.server, "--persist", "off", "-o", "json").exits(0).report()
			if len(r.Services) != 1 || len(r.Proofs) != 1 {
				t.Errorf("Services %+v, proofs %+v", r.Services, r.Proofs)
			}
			if e := clients.At(client).Run(t, n.Lab, clients.TCP, tc.vip, "x")[0]; e.Server() != "one" || e.Peer != tc.vip {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestInitMountsTheBPFFS(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	before := n.mounts()
	n.run(initArgs("--dry-run")...).exits(0).says("would: mount bpffs at " + n.BPFFS)
	if got := n.mounts(); !slices.Equal(got, before) {
		t.Fatalf("a dry run mounts: %v", got)
	}
	r := n.init()
	if got := n.mounts(); len(got) != len(before)+1 || !strings.Contains(got[len(got)-1], "nosuid,nodev,noexec") {
		t.Errorf("mounts %v", got)
	}
	for _, s := range r.Steps {
		if s.Step == "bpffs" && len(s.Changes) == 0 {
			t.Errorf("it doesn't say that it mounted: %+v", s)
		}
	}
	mounts := n.mounts()
	n.init()
	if got := n.mounts(); !slices.Equal(got, mounts) {
		t.Errorf("a second init mounts once more: %v, before %v", got, mounts)
	}
}

func TestInitSaysWhatARebootTakes(t *testing.T) {
	n := newNode(t)
	n.serving()
	line := []string{"init", "--service-ips", vips, "--endpoints", servers}
	n.run(append(line, "--dry-run")...).exits(0).says("will not survive a reboot")
	n.run(line...).exits(0).says("will not survive a reboot", "addresses saved")
	n.run(line...).exits(0).says("will not survive a reboot", "addresses are saved already")
	n.run("status").exits(0).says("after a reboot: will not survive a reboot")
}
