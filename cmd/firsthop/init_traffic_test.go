package main

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/standin"
)

// shared is a Service address that is an API server's own, too, as with kube-vip or an external load balancer.
const shared = "10.9.9.9"

// TestInitKeepsOtherPortsOfAServersOwnAddress: only those of an address that nobody has are refused.
func TestInitKeepsOtherPortsOfAServersOwnAddress(t *testing.T) {
	local := func(n node) standin.Network {
		if err := n.AddAddr(shared + "/32"); err != nil {
			t.Fatal(err)
		}
		return n.Lab
	}
	for _, tc := range []struct {
		name     string
		endpoint string
		home     func(n node) standin.Network // where the address is
	}{
		{"of another machine", shared + ":6443", func(n node) standin.Network {
			pod, err := n.AddPod("api", netip.MustParseAddr(shared))
			if err != nil {
				t.Fatal(err)
			}
			return pod
		}},
		{"of this machine", shared + ":6443", local},
		{"of this machine, with the server elsewhere", server4, local},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.inside = true // its probes pass the programs
			home := tc.home(n)
			for name, port := range map[string]string{"api": ":6443", "ssh": ":22"} {
				e, err := standin.StartTCPEcho(home, name, netip.MustParseAddrPort(shared+port))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(e.Close)
			}
			n.echo("tcp", "api", server4)
			line := []string{"init", "--service-ips", shared + ":443", "--endpoints", tc.endpoint, "--persist", "off", "-o", "json"}
			n.run(line...).exits(0)
			n.checkSharedAddress()
			if r := n.run(line...).exits(0).report(); r.Servers[0].State != "live" {
				t.Errorf("the second init finds %+v", r.Servers[0])
			}
			n.markVIP(shared) // as former versions did
			n.run(line...).exits(0)
			n.checkSharedAddress()
			if r := n.run(line...).exits(0).report(); r.Servers[0].State != "live" {
				t.Errorf("after the mark was taken away, init finds %+v", r.Servers[0])
			}
		})
	}
}

func (n node) checkSharedAddress() {
	n.Helper()
	for port, server := range map[string]string{":443": "api", ":6443": "api", ":22": "ssh"} {
		if e := clients.At(client).Run(n.T, n.Lab, clients.TCP, shared+port, "x")[0]; e.Server() != server {
			n.Errorf("%s%s: %+v, want an answer by %s", shared, port, e, server)
		}
	}
	if _, marked := n.table().Frontends[bpf.VIPKeyOf(netip.MustParseAddr(shared))]; marked {
		n.Errorf("%s is marked as an address whose other ports are refused", shared)
	}
}

func (n node) markVIP(addr string) {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), false)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	if err := maps.Map(bpf.MapFrontend).Put(bpf.VIPKeyOf(netip.MustParseAddr(addr)), bpf.Frontend{Flags: bpf.FrontendVIP}); err != nil {
		n.Fatal(err)
	}
}

// TestProveTranslatedKeepsWhatAnswers: who asks for no more than a translated connection may give servers that start
// later; until they do, every connection goes where it is answered.
func TestProveTranslatedKeepsWhatAnswers(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "old", server4)
	n.echo("tcp", "b6", server6)
	n.init()
	const later = "127.0.0.9:6443"
	line := []string{"--prove", "translated", "--endpoints", later + "," + server6}
	hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 4, Do: clients.Echo})
	for range 2 {
		r := n.init(line...)
		for _, s := range r.Servers {
			if gets := s.Endpoint.Addr.String() != later; s.Used != gets {
				t.Errorf("%s is reported as used: %t, want %t", s.Endpoint, s.Used, gets)
			}
		}
	}
	checkServers(t, n, "old")
	n.echo("tcp", "new", later)
	r := n.init(line...)
	if got := r.Services[0].Backends; len(got) != 1 || got[0].String() != later {
		t.Errorf("the backends are %v, want %s alone, which answers now", got, later)
	}
	checkServers(t, n, "new")
	checkHammered(t, vip4, hammer.Stop(), 100)
}

// checkServers wants every one of many connections answered by one server.
func checkServers(t *testing.T, n node, want string) {
	t.Helper()
	for _, e := range clients.At(client).Run(t, n.Lab, clients.TCP, vip4, "x", clients.Count(40)) {
		if e.Server() != want {
			t.Fatalf("%+v, want it answered by %s", e, want)
		}
	}
}

// TestInitRemovesServicesThatAreNotGivenAnyMore, but only if Service addresses are given: a run that finds them out may know less.
func TestInitRemovesServicesThatAreNotGivenAnyMore(t *testing.T) {
	n := newNode(t)
	n.serving()
	discovered := []string{"init", "--root", n.Dir, "--persist", "off"} // from the saved addresses
	saved := []string{"init", "--service-ips", vips, "--endpoints", servers}
	n.run(append(saved, "--extra-service", extra4)...).exits(0)
	wantFrontends(n, vip4, vip6, dns4)
	n.run(discovered...).exits(0)
	wantFrontends(n, vip4, vip6, dns4)
	n.run(append(saved, "--dry-run")...).exits(0).says("would: udp/" + dns4 + " removed")
	wantFrontends(n, vip4, vip6, dns4)
	n.run(saved...).exits(0).says("udp/" + dns4 + " removed")
	wantFrontends(n, vip4, vip6)
	n.run("init", "--service-ips", vip4, "--endpoints", server4, "--persist", "off").exits(0)
	wantFrontends(n, vip4)
	n.run(saved...).exits(0)
	n.checkServes()
	n.checkOneOfEach()
}

// wantFrontends wants these addresses in the table, and no others.
func wantFrontends(n node, addrs ...string) {
	n.Helper()
	var services []diagnose.TableService
	n.run("nat", "-o", "json").exits(0).decode(&services)
	var got []string
	for _, s := range services {
		for _, f := range s.Frontends {
			got = append(got, f[4:]) // tcp/ and udp/
		}
	}
	slices.Sort(got)
	slices.Sort(addrs)
	if !slices.Equal(got, addrs) {
		n.Errorf("the frontends are %v, want %v", got, addrs)
	}
}

// TestInitMovesServiceAddresses from one to another, to both, and back: who is given before and after an init is served all the
// time.
func TestInitMovesServiceAddresses(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	const other = "10.96.0.2:443"
	hammer := func(addr string) *clients.Hammer {
		return clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: addr, Workers: 4, Do: clients.Echo})
	}
	move := func(to string, more ...string) {
		t.Helper()
		n.run(append([]string{"init", "--service-ips", to, "--endpoints", server4, "--persist", "off"}, more...)...).exits(0)
	}
	move(vip4)
	move(other)
	wantFrontends(n, other)
	h := hammer(other)
	move(vip4 + "," + other)
	wantFrontends(n, vip4, other)
	checkHammered(t, other, h.Stop(), 10)

	h = hammer(vip4)
	move(vip4)
	wantFrontends(n, vip4)
	move(vip4, "--extra-service", "tcp/"+other+"="+server4)
	wantFrontends(n, vip4, other)
	h2 := hammer(other)
	move(other + "," + vip4) // joins two services of the table
	wantFrontends(n, vip4, other)
	move(vip4 + "," + other)
	checkHammered(t, vip4, h.Stop(), 10)
	checkHammered(t, other, h2.Stop(), 10)
	var services []diagnose.TableService
	n.run("nat", "-o", "json").exits(0).decode(&services)
	if len(services) != 1 {
		t.Errorf("%d services, want the two joined: %+v", len(services), services)
	}
	n.checkOneOfEach()
}

// TestInitAfterALostMapPinRefusesNobody: the programs that run keep the map, so it is taken up again.
func TestInitAfterALostMapPinRefusesNobody(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	n.init()
	hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 8, Do: clients.Echo})
	for _, name := range []bpf.MapName{bpf.MapBackend, bpf.MapFrontend, bpf.MapService} {
		before := n.state()
		if err := os.Remove(n.pins().Map(name)); err != nil {
			t.Fatal(err)
		}
		n.init()
		n.checkOneOfEach()
		if got := n.attached(); !slices.Equal(got, snapshot(filterPrograms(before))) {
			t.Errorf("%s: attached are %q, before %q", name, got, filterPrograms(before))
		}
	}
	checkHammered(t, vip4, hammer.Stop(), 100)
}

func filterPrograms(s snapshot) []string {
	return slices.DeleteFunc(slices.Clone(s), func(line string) bool { return line[:8] != "program " })
}

// TestInitAttachesLostLinksAgain: without its pins a link goes, and the connections with it; once init has returned, not one
// fails.
func TestInitAttachesLostLinksAgain(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	n.init()
	for range 3 {
		load := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip6, Workers: 4, Do: clients.Echo})
		if err := os.RemoveAll(n.pins().Links()); err != nil {
			t.Fatal(err)
		}
		n.init() // at once: the kernel detaches a little later
		hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 8, Do: clients.Echo, For: 200e6})
		checkHammered(t, vip4, hammer.Wait(), 100)
		load.Stop()
		n.checkOneOfEach()
	}
}
