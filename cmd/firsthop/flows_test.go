package main

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/conntrack"
)

// flows pins the maps of the packet path, with some flows.
func (n node) flows() {
	n.Helper()
	maps, err := bpf.EnsurePacketMaps(n.pins(), 4096)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	put := func(k bpf.FlowKey, f bpf.Flow) {
		f.Seen = conntrack.Now()
		if err := maps.Map(bpf.MapConntrack).Put(k, f); err != nil {
			n.Fatal(err)
		}
	}
	to := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	value := func(to netip.AddrPort, flags bpf.FlowFlags, index uint32) bpf.Flow {
		return bpf.Flow{Addr: bpf.AddressOf(to.Addr()), Port: bpf.PortOf(to.Port()), Flags: flags, Index: index}
	}
	add := func(p bpf.Proto, client, frontend, backend, source string, flags bpf.FlowFlags, index uint32) {
		c, f, b := to(client), to(frontend), to(backend)
		put(bpf.FlowKeyOf(c, f, p, bpf.WayIn), value(b, flags, index))
		if flags&bpf.FlowStack != 0 {
			return
		}
		put(bpf.FlowKeyOf(b, c, p, bpf.WayOut), value(f, flags, index))
		if source != "" {
			put(bpf.FlowKeyOf(c, b, p, bpf.WayOut), value(to(source), flags|bpf.FlowMasquerade, index))
			put(bpf.FlowKeyOf(b, to(source), p, bpf.WayIn), value(c, flags|bpf.FlowMasquerade, index))
		}
	}
	add(bpf.TCP, "203.0.113.2:40000", "192.0.2.10:80", "10.1.0.5:8080", "", bpf.FlowReplied, 1100)
	add(bpf.TCP, "203.0.113.3:40000", "192.0.2.10:80", "10.1.0.6:8080", "198.51.100.1:20000", 0, 1100)
	add(bpf.TCP, "[2001:db8:1111:2222:3333:4444:5555:6666]:40000", "[2001:db8::10]:80", "[fd00:1::5]:8080", "", bpf.FlowReset, 1101)
	add(bpf.UDP, "203.0.113.2:40000", "192.0.2.10:53", "10.1.0.5:5353", "", bpf.FlowStack, 0)
}

// listed is what `conntrack list` says as JSON.
type listed struct {
	Flows []struct {
		Proto, Client, Frontend, Backend, State, Source, Service string
		Index                                                    uint32
		AgeSeconds                                               int `json:"age_seconds"`
	}
	LeftOut int `json:"left_out"`
}

func TestConntrackList(t *testing.T) {
	n := newNode(t)
	n.flows()
	r := n.run("conntrack", "list").exits(0).says("4 flows", "tcp 192.0.2.10:80", "203.0.113.2:40000", "10.1.0.5:8080", "established", "198.51.100.1:20000", "stack", "udp 192.0.2.10:53")
	for line := range strings.Lines(r.stdout) {
		if line = strings.TrimRight(line, "\n"); utf8.RuneCountInString(line) > lineWidth || line != strings.TrimRight(line, " ") {
			t.Errorf("%d columns: %q", utf8.RuneCountInString(line), line)
		}
	}
	stop := n.asRuntime(synced(1), admin.Service{Index: 1100, Namespace: "default", Name: "web", Port: "http", Proto: "tcp", Family: "IPv4"})
	n.run("conntrack", "list").exits(0).says("tcp 192.0.2.10:80  default/web:http")
	var all listed
	n.run("conntrack", "list", "-o", "json").exits(0).decode(&all)
	if len(all.Flows) != 4 || all.LeftOut != 0 {
		t.Fatalf("%+v", all)
	}
	f := all.Flows[1]
	if f.Proto != "tcp" || f.Client != "203.0.113.3:40000" || f.Frontend != "192.0.2.10:80" || f.Backend != "10.1.0.6:8080" || f.State != "unanswered" ||
		f.Source != "198.51.100.1:20000" || f.Service != "default/web:http" || f.Index != 1100 || f.AgeSeconds > 60 {
		t.Errorf("%+v", f)
	}
	stop()
	for _, tc := range []struct {
		flags []string
		want  int
	}{
		{[]string{"--client", "203.0.113.2"}, 2}, {[]string{"--client", "203.0.113.0/24"}, 3}, {[]string{"--client", "2001:db8::/32"}, 1},
		{[]string{"--frontend", "192.0.2.10:80"}, 2}, {[]string{"--frontend", "192.0.2.10"}, 3}, {[]string{"--backend", "[fd00:1::5]:8080"}, 1},
		{[]string{"--proto", "udp"}, 1}, {[]string{"--state", "reset", "--state", "stack"}, 2}, {[]string{"--state", "reset,stack"}, 2}, {[]string{"--client", "203.0.113.2", "--proto", "tcp"}, 1},
		{[]string{"--proto", "sctp"}, 0}, {[]string{"--limit", "3"}, 3}, {[]string{"--limit", "0"}, 4},
	} {
		var got listed
		n.run(append([]string{"conntrack", "list", "-o", "json"}, tc.flags...)...).exits(0).decode(&got)
		if len(got.Flows) != tc.want || (got.LeftOut > 0) != (tc.want == 3 && tc.flags[0] == "--limit") {
			t.Errorf("%q: %d flows, %d left out, want %d", tc.flags, len(got.Flows), got.LeftOut, tc.want)
		}
	}
	n.run("conntrack", "list", "--limit", "1").exits(0).says("4 flows; the first 1 are below: --limit 0 shows all")
	n.run("conntrack", "list", "--proto", "sctp").exits(0).says("0 flows")
}

func TestConntrackCount(t *testing.T) {
	n := newNode(t)
	n.flows()
	n.run("conntrack", "count").exits(0).says("4 flows; 9 of 4096 entries of the map are in use (0%)", "tcp    established  1", "udp    stack        1")
	n.run("conntrack", "count", "--proto", "tcp", "-o", "json").exits(0).says(`"state": "reset"`)
	n.run("conntrack", "count", "--state", "closing").exits(0).says("0 flows; 9 of")
}

func TestConntrackFlush(t *testing.T) {
	n := newNode(t)
	n.flows()
	n.run("conntrack", "flush").exits(bootstrap.ExitUsage).says("--all, or which flows")
	n.run("conntrack", "flush", "--all", "--proto", "udp").exits(bootstrap.ExitUsage)
	n.run("conntrack", "count").says("9 of")
	n.run("conntrack", "flush", "--client", "203.0.113.3").exits(0).says("flushed 1 flow\n")
	n.run("conntrack", "count").says("3 flows; 5 of")
	n.run("conntrack", "flush", "--all", "-o", "json").exits(0).says(`"flushed": 3`)
	n.run("conntrack", "count").says("0 flows; 0 of")
}

func TestConntrackRefuses(t *testing.T) {
	n := newNode(t)
	for _, verb := range []string{"list", "count"} {
		n.run("conntrack", verb).exits(bootstrap.ExitInternal).says("the packet path is off", "firsthop run --packet-path")
		n.run("conntrack", verb, "-o", "json").exits(bootstrap.ExitInternal).says(`"exit_code": 1`)
	}
	n.run("conntrack", "flush", "--all").exits(bootstrap.ExitInternal).says("the packet path is off")
	n.flows()
	for _, tc := range []struct {
		line []string
		says string
	}{
		{[]string{"lst"}, "did you mean list?"},
		{[]string{"list", "web"}, "takes no arguments"},
		{[]string{"list", "--client", "web"}, `--client "web": want an address or a CIDR`},
		{[]string{"list", "--frontend", ":80"}, `--frontend ":80": want an address`},
		{[]string{"list", "--backend", "1.2.3.4:http"}, `--backend "1.2.3.4:http"`},
		{[]string{"count", "--proto", "icmp"}, `--proto protocol "icmp"`},
		{[]string{"flush", "--state", "lost"}, `--state "lost": want unanswered`},
		{[]string{"list", "--limit", "-1"}, "want 0 or more"},
		{[]string{"list", "--color"}, "unknown flag"},
	} {
		n.run(append([]string{"conntrack"}, tc.line...)...).exits(bootstrap.ExitUsage).says(tc.says)
	}
}
