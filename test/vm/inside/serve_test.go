package inside

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/clients"
)

// rungs are what is forbidden, one of the higher rungs of each ladder at a time, then all of them: what Linux 5.3 has.
var rungs = []struct{ name, forbidden string }{
	{"with everything", ""},
	{"without bpf_link", "cgroup-link"},
	{"without batches", "batch"},
	{"without the cookie of a network namespace", "netns-cookie"},
	{"without that cookie for processes", "so-netns-cookie"},
	{"without getpeername", "getpeername"},
	{"without set_retval", "set-retval"},
	{"without a list of links", "link-list"},
	{"without processes that are born in a cgroup", "clone-into-cgroup"},
	{"as on the floor", aboveFloor()},
}

// report is what we read of `firsthop init -o json`.
type report struct {
	Result string `json:"result"`
	Hooks  []struct {
		Hook   string `json:"hook"`
		By     string `json:"by"`
		Change string `json:"change"`
	} `json:"hooks"`
	Services []struct {
		Name   string `json:"name"`
		Change string `json:"change"`
	} `json:"services"`
}

// initLine is the command line of init on this machine, with settings of the environment before it.
func initLine(servers, forbidden string) []string {
	return forbid(forbidden, varVIPs, varServers+servers, "init", "--persist", "off", "-o", "json",
		"--extra-service", "udp/"+dns4+"=127.0.0.1:5353", "--extra-service", "udp/"+dns6+"=[::1]:5353")
}

// forbid adds what is forbidden to a command line.
func forbid(features string, line ...string) []string {
	if features != "" {
		line = append(line, "--forbid-feature", features)
	}
	return line
}

// TestInitOnEveryRung goes from a bare machine to one that serves, and back, by the lower rung of each
// ladder too: so the way that old kernels take is tried on every kernel.
func TestInitOnEveryRung(t *testing.T) {
	needsMachine(t)
	echo(t, "tcp", "b4", server4)
	echo(t, "tcp", "b6", server6)
	echo(t, "tcp", "other4", "127.0.0.2:6443")
	echo(t, "udp", "d4", "127.0.0.1:5353")
	echo(t, "udp", "d6", "[::1]:5353")
	for _, rung := range rungs {
		t.Run(rung.name, func(t *testing.T) {
			before := takeTraces(t)
			line := initLine(server4+","+server6, rung.forbidden)
			var r report
			firsthop(t, line...).exits(0).decode(&r)
			checkHooks(t, r, rung.forbidden)
			checkClients(t, rung.forbidden)
			checkNamespace(t, rung.forbidden)
			firsthop(t, "status").exits(0).says("serving; proven", vip4, vip6, "udp/"+dns4)

			serving := takeServing(t)
			firsthop(t, line...).exits(0).decode(&r)
			for _, h := range r.Hooks {
				if h.Change != "kept" {
					t.Errorf("a second run says that %s is %s", h.Hook, h.Change)
				}
			}
			takeServing(t).wantSame(t, "a second run", serving)

			firsthop(t, initLine("127.0.0.2:6443,"+server6, rung.forbidden)...).exits(0)
			for range 5 {
				if e := exchange(t, clients.TCP, vip4); e.Server() != "other4" {
					t.Errorf("after the API server has moved: %+v", e)
				}
			}

			firsthop(t, "uninstall").exits(1).says("--force") // nothing else serves the addresses
			firsthop(t, forbid(rung.forbidden, "uninstall", "--force")...).exits(0)
			eventuallySame(t, "uninstall", before)
			if e := exchange(t, clients.TCP, vip4); e.Error == "" {
				t.Errorf("after uninstall: %+v", e)
			}
			firsthop(t, "uninstall").exits(0).says("nothing of firsthop's is here")
		})
	}
}

// missing tells whether a feature is forbidden or not of this kernel.
func missing(t *testing.T, forbidden, feature string) bool {
	t.Helper()
	return strings.Contains(","+forbidden+",", ","+feature+",") || !there(t, feature)
}

// checkHooks wants every hook that this rung has, attached in this rung's way.
func checkHooks(t *testing.T, r report, forbidden string) {
	t.Helper()
	by, hooks := "bpf_link", 8
	if missing(t, forbidden, "cgroup-link") {
		by = "prog_attach"
	}
	if missing(t, forbidden, "getpeername") {
		hooks = 6
	}
	if len(r.Hooks) != hooks {
		t.Errorf("%d hooks, want %d: %+v", len(r.Hooks), hooks, r.Hooks)
	}
	for _, h := range r.Hooks {
		if h.By != by {
			t.Errorf("%s is attached by %s, want %s", h.Hook, h.By, by)
		}
	}
}

// checkNamespace asks whether the programs know the host's network namespace: the kernel says it, or a
// program of ours where that can be attached for an instant.
func checkNamespace(t *testing.T, forbidden string) {
	t.Helper()
	if !there(t, "netns-cookie") || !there(t, "so-netns-cookie") && !there(t, "cgroup-link") {
		return
	}
	var seen struct {
		Client struct {
			Netns  uint64 `json:"netns_cookie"`
			Host   bool   `json:"host_netns"`
			Unsaid bool   `json:"host_netns_unknown"`
		} `json:"client"`
	}
	firsthop(t, "nat", "lookup", vip4, "--pid", strconv.Itoa(os.Getpid()), "-o", "json").exits(0).decode(&seen)
	known := !missing(t, forbidden, "so-netns-cookie") || !missing(t, forbidden, "cgroup-link")
	if want := known && !missing(t, forbidden, "netns-cookie"); seen.Client.Netns == 0 || seen.Client.Host != want || seen.Client.Unsaid == want {
		t.Errorf("this process, in the host's network namespace: %+v, want it known as the host's: %t", seen.Client, want)
	}
}

// mapped is an IPv4 address as an IPv6 socket has it.
func mapped(addr string) string {
	a := netip.MustParseAddrPort(addr)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
}

// checkClients connects over both protocols and both families, and from IPv6 sockets to IPv4.
func checkClients(t *testing.T, forbidden string) {
	t.Helper()
	refused := "connect ECONNREFUSED"
	if missing(t, forbidden, "set-retval") {
		refused = "connect EPERM"
	}
	// peer is what getpeername says of a connection to an address that leads to a backend.
	peer := func(addr, backend string) string {
		if missing(t, forbidden, "getpeername") {
			return backend
		}
		return addr
	}
	for _, tc := range []struct {
		name   string
		mode   clients.Mode
		addr   string
		mapped bool
		server string
		want   clients.Exchange
	}{
		{"TCP over IPv4", clients.TCP, vip4, false, "b4", clients.Exchange{Peer: peer(vip4, server4)}},
		{"TCP over IPv6", clients.TCP, vip6, false, "b6", clients.Exchange{Peer: peer(vip6, server6)}},
		{"TCP over IPv4 by an IPv6 socket", clients.TCP, vip4, true, "b4", clients.Exchange{Peer: peer(mapped(vip4), mapped(server4))}},
		{"connected UDP over IPv4", clients.UDPConnected, dns4, false, "d4", clients.Exchange{Peer: peer(dns4, "127.0.0.1:5353"), From: dns4}},
		{"connected UDP over IPv6", clients.UDPConnected, dns6, false, "d6", clients.Exchange{Peer: peer(dns6, "[::1]:5353"), From: dns6}},
		{"connected UDP by an IPv6 socket", clients.UDPConnected, dns4, true, "d4",
			clients.Exchange{Peer: peer(mapped(dns4), mapped("127.0.0.1:5353")), From: mapped(dns4)}},
		{"unconnected UDP over IPv4", clients.UDPUnconnected, dns4, false, "d4", clients.Exchange{From: dns4}},
		{"unconnected UDP over IPv6", clients.UDPUnconnected, dns6, false, "d6", clients.Exchange{From: dns6}},
		{"unconnected UDP by an IPv6 socket", clients.UDPUnconnected, dns4, true, "d4", clients.Exchange{From: mapped(dns4)}},
		{"a port of the VIP that isn't served", clients.TCP, "10.96.0.1:444", false, "", clients.Exchange{Error: refused}},
		{"an address that is no VIP", clients.TCP, "127.0.0.1:7", false, "", clients.Exchange{Error: "connect ECONNREFUSED"}},
	} {
		var opts []clients.Option
		if tc.mapped {
			opts = append(opts, clients.Mapped)
		}
		e := exchange(t, tc.mode, tc.addr, opts...)
		server := e.Server()
		e.Reply = ""
		if server != tc.server || e != tc.want {
			t.Errorf("%s: answered by %q, %+v; want %q, %+v", tc.name, server, e, tc.server, tc.want)
		}
	}
}
