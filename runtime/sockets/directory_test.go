package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
)

func named(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

// udp is the one port of a Service.
func udp(name, frontend string, backends ...string) []services.Port {
	p := services.Port{Key: services.PortKey{Service: named(name), Proto: bpf.UDP}}
	p.Frontends = []bpf.FrontendKey{bpf.FrontendKeyOf(netip.MustParseAddrPort(frontend), bpf.UDP)}
	p.Backends, p.AllowEmpty = addrPorts(backends...), true
	p.Serving = p.Backends
	return []services.Port{p}
}

type judge struct {
	t *testing.T
	*Directory
}

func (j judge) write(name string, ports []services.Port) Effect {
	j.Set(named(name), ports)
	j.Begin()
	return j.Done(nil)
}

func (j judge) want(frontend, backend string, want Verdict, service string) {
	j.t.Helper()
	got, of := j.Judge(netip.MustParseAddrPort(frontend), bpf.UDP, netip.MustParseAddrPort(backend))
	if got != want || of.Name != service {
		j.t.Errorf("%s on %s: %d of %q, want %d of %q", frontend, backend, got, of.Name, want, service)
	}
}

func TestDirectoryJudgesByService(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	d.write("a", udp("a", "10.96.0.1:53", "10.0.0.1:53", "10.0.0.2:53"))
	d.write("b", udp("b", "10.96.0.2:53", "10.0.0.1:53"))
	d.want("10.96.0.1:53", "10.0.0.1:53", Fresh, "")
	d.want("10.96.0.1:53", "10.0.0.3:53", Stale, "a")
	d.want("10.96.0.9:53", "10.0.0.1:53", Orphan, "")
	if e := d.write("a", udp("a", "10.96.0.1:53", "10.0.0.2:53")); !e.Stale || e.Usable {
		t.Errorf("a backend went: %+v", e)
	}
	d.want("10.96.0.1:53", "10.0.0.1:53", Stale, "a") // though b still has it
	d.want("10.96.0.2:53", "10.0.0.1:53", Fresh, "")
	if e := d.write("a", udp("a", "10.96.0.1:53", "10.0.0.2:53", "10.0.0.4:53")); e != (Effect{}) {
		t.Errorf("a backend came: %+v", e)
	}
	d.write("a", udp("a", "10.96.0.1:53"))
	d.want("10.96.0.1:53", "10.0.0.2:53", Starved, "a")
	if e := d.write("a", udp("a", "10.96.0.1:53", "10.0.0.5:53")); !e.Usable {
		t.Errorf("the first backend came: %+v", e)
	}
	if e := d.write("a", nil); !e.Stale {
		t.Errorf("a Service went: %+v", e)
	}
	d.want("10.96.0.1:53", "10.0.0.5:53", Orphan, "")
	if d.Has(named("a")) || !d.Has(named("b")) {
		t.Error("which Services there are")
	}
}

func TestDirectoryKnowsWhatIsWritten(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	d.write("a", udp("a", "10.96.0.1:53", "10.0.0.1:53"))
	d.Set(named("a"), udp("a", "10.96.0.1:53", "10.0.0.2:53"))
	for _, when := range []string{"wanted", "being written", "after a write that failed", "tried again"} {
		d.want("10.96.0.1:53", "10.0.0.1:53", Fresh, "") // the table leads there still
		d.want("10.96.0.1:53", "10.0.0.2:53", Fresh, "") // or there already
		d.want("10.96.0.1:53", "10.0.0.3:53", Stale, "a")
		switch when {
		case "wanted", "after a write that failed":
			d.Begin()
		case "being written":
			d.Done(errors.New("no"))
		}
	}
	d.Set(named("a"), udp("a", "10.96.0.1:53", "10.0.0.3:53")) // not of the write at hand
	d.Done(nil)
	d.want("10.96.0.1:53", "10.0.0.1:53", Stale, "a")
	d.want("10.96.0.1:53", "10.0.0.2:53", Fresh, "")
	d.want("10.96.0.1:53", "10.0.0.3:53", Fresh, "")
	d.Begin()
	d.Done(nil)
	d.want("10.96.0.1:53", "10.0.0.2:53", Stale, "a")

	d.Set(named("new"), udp("new", "10.96.0.2:53", "10.0.0.9:53"))
	d.Begin()
	d.want("10.96.0.2:53", "10.0.0.9:53", Fresh, "") // the table may be ahead
	d.want("10.96.0.2:53", "10.0.0.8:53", Fresh, "")
}

func TestDirectoryWithManyBackends(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	var backends []string
	for i := range 20 {
		backends = append(backends, fmt.Sprintf("10.0.0.%d:53", 101+i)) // in order, as a Port has them
	}
	d.write("a", udp("a", "10.96.0.1:53", backends...))
	for _, b := range backends {
		d.want("10.96.0.1:53", b, Fresh, "")
	}
	for _, b := range []string{"10.0.0.100:53", "10.0.0.121:53", "10.0.0.110:54"} {
		d.want("10.96.0.1:53", b, Stale, "a")
	}
}

// A frontend that moves from one Service to another is the latter's, in whatever order they are told.
func TestDirectoryFrontendsMove(t *testing.T) {
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		d := judge{t, NewDirectory(false)}
		d.write("a", udp("a", "10.96.0.1:53", "10.0.0.1:53"))
		for _, name := range order {
			if name == "a" {
				d.Set(named("a"), nil)
			} else {
				d.Set(named("b"), udp("b", "10.96.0.1:53", "10.0.0.2:53"))
			}
		}
		d.Begin()
		if e := d.Done(nil); !e.Stale {
			t.Errorf("%v: %+v", order, e)
		}
		d.want("10.96.0.1:53", "10.0.0.1:53", Stale, "b")
		d.want("10.96.0.1:53", "10.0.0.2:53", Fresh, "")
	}
}

func TestDirectoryNowhere(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	d.write("a", udp("a", "10.96.0.1:53"))
	d.want("10.96.0.1:53", "127.0.0.9:9", Fresh, "")
	d.want("10.96.0.7:53", "127.0.0.9:9", Fresh, "") // a port that a VIP does not serve
	d.write("a", udp("a", "10.96.0.1:53", "10.0.0.1:53"))
	d.want("10.96.0.1:53", "127.0.0.9:9", Waiting, "a")
	local := udp("a", "10.96.0.1:53", "10.0.0.1:53")
	local[0].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{local[0].Frontends[0]: bpf.FrontendLocalPolicy}
	d.write("a", local)
	d.want("10.96.0.1:53", "127.0.0.9:9", Fresh, "")
	d.want("10.96.0.1:53", "10.0.0.1:53", Fresh, "") // it serves, if not for new ones
	d.want("10.96.0.1:53", "10.0.0.2:53", Starved, "a")
	local = udp("a", "10.96.0.1:53", "10.0.0.1:53")
	local[0].Serving, local[0].Backends = local[0].Backends, nil
	d.write("a", local)
	d.want("10.96.0.1:53", "10.0.0.1:53", Fresh, "") // it terminates
}

// Node ports are asked for at any loopback address, and at the addresses of other nodes.
func TestDirectoryNodePorts(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	p := udp("a", "192.0.2.1:30053", "10.0.0.1:53")
	for _, is4 := range []bool{true, false} {
		p[0].Frontends = append(p[0].Frontends, bpf.LoopbackKey(is4, 30053, bpf.UDP), bpf.NodePortKey(is4, 30053, bpf.UDP))
	}
	d.write("a", p)
	for _, at := range []string{"192.0.2.1:30053", "127.0.0.1:30053", "127.1.2.3:30053", "[::1]:30053", "192.0.2.77:30053", "[2001:db8::7]:30053"} {
		d.want(at, "10.0.0.1:53", Fresh, "")
		d.want(at, "10.0.0.2:53", Stale, "a")
		d.want(at[:len(at)-1]+"4", "10.0.0.1:53", Orphan, "")
	}
}

// Who asks again for an address of a Service that is gone is led nowhere, or to who has it now, and is found there by the
// next Service with that address.
func TestDirectoryServiceRange(t *testing.T) {
	d := judge{t, NewDirectory(false)}
	d.write("a", udp("a", "10.96.0.1:53", "10.0.0.1:53"))
	d.write("a", nil)
	d.want("10.96.0.1:53", "10.0.0.1:53", Orphan, "")
	d.SetRange([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")})
	d.Begin()
	d.want("10.96.0.1:53", "10.0.0.1:53", Orphan, "") // it is not written
	d.Done(errors.New("no"))
	d.want("10.96.0.1:53", "10.0.0.1:53", Orphan, "")
	d.Begin()
	d.Done(nil)
	d.want("10.96.0.1:53", "10.0.0.1:53", Starved, "")
	d.want("[fd00:96::1]:53", "[fd00::1]:53", Starved, "")
	d.want("[::ffff:10.96.0.1]:53", "10.0.0.1:53", Starved, "")
	d.want("203.0.113.1:53", "10.0.0.1:53", Orphan, "")
	d.want("10.96.0.1:53", "127.0.0.9:9", Fresh, "")
	if v, _ := d.Judge(netip.MustParseAddrPort("10.96.0.1:80"), bpf.TCP, netip.MustParseAddrPort("10.0.0.1:80")); v != Orphan {
		t.Errorf("TCP: %d", v)
	}
	if e := d.write("b", udp("b", "10.96.0.1:53", "10.0.0.2:53")); !e.Usable {
		t.Errorf("a Service came with the address: %+v", e)
	}
	d.want("10.96.0.1:53", "127.0.0.9:9", Waiting, "b")
}

func TestDirectoryAtStart(t *testing.T) {
	d := NewDirectory(true)
	if d.Done(errors.New("no")); d.Ready() {
		t.Error("ready after a write that failed")
	}
	if e := d.Done(nil); !e.Stale || !e.Usable || !d.Ready() {
		t.Errorf("after the first write: %+v: want everything looked at", e)
	}
	at := netip.MustParseAddrPort("10.96.0.1:443")
	if v, _ := d.Judge(at, bpf.TCP, netip.MustParseAddrPort("10.0.0.1:6443")); v != Orphan {
		t.Errorf("of no Service: %d", v)
	}
	d.SetAPI([]netip.AddrPort{at})
	if v, _ := d.Judge(at, bpf.TCP, netip.MustParseAddrPort("10.0.0.1:6443")); v != Fresh {
		t.Errorf("of the API service: %d", v)
	}
}

// A flow of a client outside is told apart from sockets: only frontends for such clients matter.
func TestDirectoryKnowsWhichBackendsAreGone(t *testing.T) {
	d := judge{t, NewDirectory(true)}
	gone := func(frontend, backend string) bool {
		return d.Gone(netip.MustParseAddrPort(frontend), bpf.UDP, netip.MustParseAddrPort(backend))
	}
	external := func(backends ...string) []services.Port {
		ports := udp("a", "192.0.2.1:53", backends...)
		ports[0].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{ports[0].Frontends[0]: bpf.FrontendExternal}
		return ports
	}
	if gone("192.0.2.1:53", "10.0.0.1:53") {
		t.Error("a backend is gone before anything is known")
	}
	if e := d.write("a", external("10.0.0.1:53", "10.0.0.2:53")); !e.Gone {
		t.Errorf("backends may have gone before the first write: %+v", e)
	}
	if gone("192.0.2.1:53", "10.0.0.1:53") {
		t.Error("one that serves is gone")
	}
	if e := d.write("a", external("10.0.0.2:53")); !e.Gone || !gone("192.0.2.1:53", "10.0.0.1:53") {
		t.Errorf("one that went is not: %+v", e)
	}
	terminating := external()
	terminating[0].Serving = addrPorts("10.0.0.2:53")
	if e := d.write("a", terminating); e.Gone || gone("192.0.2.1:53", "10.0.0.2:53") {
		t.Errorf("one that terminates, and serves, is gone: %+v", e)
	}
	if e := d.write("a", nil); !e.Gone || !gone("192.0.2.1:53", "10.0.0.2:53") {
		t.Errorf("the Service went: %+v", e)
	}
	d.write("b", udp("b", "10.96.0.2:53", "10.0.0.1:53"))
	if e := d.write("b", udp("b", "10.96.0.2:53")); e.Gone || !e.Stale {
		t.Errorf("a frontend for sockets only: %+v", e)
	}
}
