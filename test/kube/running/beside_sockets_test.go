package running

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/clients"
)

// connectAll connects a UDP socket of each form, named by it.
func (b *bed) connectAll(w *world, prefix string) {
	b.t.Helper()
	for _, f := range forms {
		to := f.of(w.vips(), 53)
		b.once("connect "+prefix+f.name, "ok", func(p *place) string { return p.connect(prefix+f.name, clients.UDPConnected, to) })
	}
}

// talkAll talks by these until all have the answer.
func (b *bed) talkAll(w *world, prefix, want string, buts ...but) {
	b.t.Helper()
	for _, f := range forms {
		to := f.of(w.vips(), 53)
		b.see("talk "+prefix+f.name, want, func(p *place) string { return p.talk(prefix+f.name, to) }, buts...)
	}
}

// looseAll has an unconnected socket of each form ask.
func (b *bed) looseAll(w *world, want string, buts ...but) {
	b.t.Helper()
	for _, f := range forms {
		to := f.of(w.vips(), 53)
		b.see("unconnected "+f.name, want, func(p *place) string { return p.sendReceive("loose "+f.name, to) }, buts...)
	}
}

func (b *bed) openLoose() {
	for _, f := range forms {
		for _, p := range b.places {
			p.open("loose "+f.name, clients.UDPUnconnected, f.of([]string{"0.0.0.0", "::"}, 0))
		}
	}
}

// filtered is what kube-proxy does to datagrams of the node itself that it rejects or drops.
var filtered = []but{{"kube-proxy node", "ok|timeout|sendto EPERM|sendto ECONNREFUSED", "the node's own filter refuses them"}}

// tracked is what kube-proxy does with a flow whose Service has no endpoint any more, or is gone: it does not touch it, so
// that the former backend hears the client for as long as that sends.
func tracked(backend string) but {
	return but{"kube-proxy", backend, "connection tracking still leads to what is no endpoint"}
}

// socketScenes are what sockets live through.
var socketScenes = []scene{
	{"a backend is replaced", func(b *bed) {
		w := udpWorld("replaced", ep("p3")...)
		b.put(w)
		b.connectAll(w, "")
		b.openLoose()
		tcp := forms[0].of(w.vips(), 80)
		b.once("connect TCP", "ok", func(p *place) string { return p.connect("tcp", clients.TCP, tcp) })
		b.talkAll(w, "", "p3:53")
		b.looseAll(w, "p3:53")
		w.endpoints = ep("p4")
		b.put(w)
		b.talkAll(w, "", "p4:53")
		b.looseAll(w, "p4:53")
		b.once("TCP goes on", "p3:80", func(p *place) string { return p.talk("tcp", tcp) })
	}, false},
	{"a backend terminates, then goes", func(b *bed) {
		w := udpWorld("terminates", ep("p3")...)
		b.put(w)
		b.connectAll(w, "")
		b.talkAll(w, "", "p3:53")
		w.endpoints = []endpoint{{pod: "p3", state: "terminating"}, {pod: "p4"}}
		b.put(w)
		b.connectAll(w, "new ")
		b.talkAll(w, "new ", "p4:53")
		b.talkAll(w, "", "p3:53")
		w.endpoints = []endpoint{{pod: "p3", state: "gone"}, {pod: "p4"}}
		b.put(w)
		b.talkAll(w, "", "p4:53")
		w.endpoints = []endpoint{{pod: "p4", state: "terminating"}}
		b.put(w)
		b.talkAll(w, "", "p4:53")
		b.connectAll(w, "last ")
		b.talkAll(w, "last ", "p4:53")
	}, false},
	{"a backend is replaced while nothing runs", func(b *bed) {
		w, gone := udpWorld("stopped", ep("p3")...), udpWorld("down-gone", ep("p5")...)
		other := udpWorld("down-other", ep("p4")...)
		b.put(gone)
		b.put(other)
		b.put(w)
		b.connectAll(w, "")
		b.connectAll(gone, "gone ")
		b.connectAll(other, "other ")
		b.talkAll(w, "", "p3:53")
		b.talkAll(gone, "gone ", "p5:53")
		b.talkAll(other, "other ", "p4:53")
		b.kill()
		for _, pod := range []string{"p5", "p4"} { // twice, and to where another Service is
			w.endpoints = ep(pod)
			w.put(b.f, b.f.cluster)
		}
		gone.endpoints = nil
		gone.put(b.f, b.f.cluster)
		other.endpoints = ep("p3")
		other.put(b.f, b.f.cluster)
		b.revive()
		b.talkAll(w, "", "p4:53")
		b.talkAll(other, "other ", "p3:53")
		b.talkAll(gone, "gone ", refused, tracked("p5:53"))
		gone.endpoints = ep("p6")
		b.put(gone)
		b.talkAll(gone, "gone ", "p6:53")
	}, false},
	{"a backend's address becomes another Service's", func(b *bed) {
		w, other := udpWorld("address-a", ep("p3")...), udpWorld("address-b", ep("p4")...)
		b.put(w)
		b.put(other)
		b.connectAll(w, "")
		b.connectAll(other, "other ")
		b.talkAll(w, "", "p3:53")
		w.endpoints, other.endpoints = ep("p5"), ep("p3")
		b.put(other)
		b.put(w)
		b.talkAll(w, "", "p5:53")
		b.talkAll(other, "other ", "p3:53")
	}, false},
	{"no backend yet", func(b *bed) {
		w := udpWorld("none-yet")
		b.put(w)
		b.connectAll(w, "")
		b.openLoose()
		for _, f := range forms {
			to := f.of(w.vips(), 53)
			for range 3 {
				b.once("send by an unconnected socket, "+f.name, "ok", func(p *place) string { return p.send("loose "+f.name, to) }, filtered...)
			}
			b.once("it hears", "timeout", func(p *place) string { return p.receive("loose "+f.name, to) })
		}
		b.talkAll(w, "", refused)
		w.endpoints = ep("p3")
		b.put(w)
		b.talkAll(w, "", "p3:53")
		b.looseAll(w, "p3:53")
		w.endpoints = nil
		b.put(w)
		b.talkAll(w, "", refused, tracked("p3:53"))
		b.looseAll(w, "timeout", tracked("p3:53"))
		w.endpoints = ep("p4")
		b.put(w)
		b.talkAll(w, "", "p4:53")
		b.looseAll(w, "p4:53")
	}, false},
	{"slices are deleted and made again", func(b *bed) {
		w := udpWorld("short", ep("p3")...)
		b.put(w)
		b.connectAll(w, "")
		b.talkAll(w, "", "p3:53")
		stop, heard := make(chan struct{}), make(chan string, len(b.places))
		for _, p := range b.places {
			go func() {
				to, bad := forms[0].of(w.vips(), 53), ""
				for {
					select {
					case <-stop:
						heard <- bad
						return
					default:
					}
					if got := p.talk("IPv4", to); got != "p3:53" && p.node == here {
						bad += fmt.Sprintf(" %s: %s", p.kind, got)
					}
				}
			}()
		}
		b.deleteSlices(w)
		time.Sleep(400 * time.Millisecond) // no condition: nothing is to happen
		w.put(b.f, b.f.cluster)
		b.fence()
		close(stop)
		for range b.places {
			if bad := <-heard; bad != "" {
				b.t.Error("meanwhile, a connected socket heard", bad)
			}
		}
		b.talkAll(w, "", "p3:53")
	}, false},
	{"a Service is deleted and made again", func(b *bed) {
		w := udpWorld("again", ep("p3")...)
		b.put(w)
		b.connectAll(w, "")
		b.openLoose()
		b.talkAll(w, "", "p3:53")
		b.looseAll(w, "p3:53")
		ips := w.vips()
		b.remove(w)
		time.Sleep(1500 * time.Millisecond) // no condition: longer than a backend may be gone
		w.svc.Spec.ClusterIPs, w.svc.Spec.ClusterIP = ips, ips[0]
		w.endpoints = ep("p4")
		b.put(w)
		b.talkAll(w, "", "p4:53")
		b.looseAll(w, "p4:53")
	}, false},
	{"a Service is made again with another cluster IP", func(b *bed) {
		w := udpWorld("moved", ep("p3")...)
		b.put(w)
		b.connectAll(w, "")
		b.talkAll(w, "", "p3:53")
		former := *w
		former.svc = *w.svc.DeepCopy()
		b.remove(w)
		w.endpoints = ep("p4")
		b.put(w)
		b.connectAll(w, "new ")
		b.talkAll(w, "new ", "p4:53")
		b.talkAll(&former, "", refused, tracked("p3:53"))
		// Another Service gets the address.
		heir := udpWorld("heir", ep("p5")...)
		heir.svc.Spec.ClusterIPs, heir.svc.Spec.ClusterIP = former.vips(), former.vips()[0]
		b.put(heir)
		b.talkAll(&former, "", "p5:53")
	}, false},
	{"a port is renamed", func(b *bed) {
		w := udpWorld("renamed", ep("p3")...)
		w.slicePorts = map[string]int32{"dns/UDP": 53, "http/TCP": 80}
		b.put(w)
		b.connectAll(w, "")
		b.talkAll(w, "", "p3:53")
		w.svc.Spec.Ports[0].Name = "domain"
		b.put(w)
		b.talkAll(w, "", refused, tracked("p3:53"))
		w.slicePorts = map[string]int32{"domain/UDP": 54, "http/TCP": 80}
		b.put(w)
		b.talkAll(w, "", "p3:54")
	}, false},
	{"internalTrafficPolicy Local", func(b *bed) {
		w := udpWorld("local", endpoint{pod: "p3", node: there})
		w.svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		b.put(w)
		b.connectAll(w, "")
		b.openLoose()
		quiet := []but{{here, refused, "it waits at the discard port of loopback, which says so"}, {"kube-proxy node", refused, "its own filter drops it"}}
		b.talkAll(w, "", "timeout", quiet...)
		b.looseAll(w, "timeout", filtered...)
		w.endpoints = []endpoint{{pod: "p3", node: there}, {pod: "p4", node: here}, {pod: "p5", node: "nftables"}, {pod: "p6", node: "iptables"}}
		b.put(w)
		own := []but{{here, "p4:53", "its own"}, {"nftables", "p5:53", "its own"}, {"iptables", "p6:53", "its own"}}
		b.talkAll(w, "", "", own...)
		b.looseAll(w, "", own...)
		w.endpoints = w.endpoints[:1]
		b.put(w)
		b.looseAll(w, "timeout", filtered...)
		b.talkAll(w, "", "timeout", quiet...)
	}, false},
	{"who answered", func(b *bed) {
		w, second := udpWorld("who-a", ep("p3")...), udpWorld("who-b", ep("p3")...)
		b.put(w)
		b.put(second)
		b.openLoose()
		for _, f := range forms {
			one, two := f.of(w.vips(), 53), f.of(second.vips(), 53)
			pod := f.of([]string{b.f.podAddr("p3", 0).String(), b.f.podAddr("p3", 1).String()}, 53)
			socket := "loose " + f.name
			for range 2 {
				for _, to := range []netip.AddrPort{one, pod, two, pod, one, two} {
					b.once("asked "+to.String(), "p3:53", func(p *place) string { return p.sendReceive(socket, to) })
				}
			}
			b.once("asked one and the pod at once", "p3:53, p3:53 from p3:53", func(p *place) string {
				p.send(socket, one)
				p.send(socket, pod)
				x, y := p.receive(socket, one), p.receive(socket, one)
				if x > y {
					x, y = y, x
				}
				return x + ", " + y
			}, but{here, "p3:53 from p3:53, p3:53 from p3:53", "both are from the backend, by the last one that was asked: docs/runtime.md"})
			b.once("connect to one", "ok", func(p *place) string { return p.connect("who", clients.UDPConnected, one) })
			b.once("and ask", "p3:53", func(p *place) string { return p.talk("who", one) })
			b.once("connect it to the pod", "ok", func(p *place) string { return p.again("who", pod) })
			b.once("and ask there", "p3:53", func(p *place) string { return p.talk("who", pod) })
			b.once("connect it to two", "ok", func(p *place) string { return p.again("who", two) })
			b.once("and ask there, too", "p3:53", func(p *place) string { return p.talk("who", two) })
		}
	}, false},
	{"one source port for two Services of one backend", func(b *bed) {
		w, second := udpWorld("port-a", ep("p3")...), udpWorld("port-b", ep("p3")...)
		b.put(w)
		b.put(second)
		for i, f := range forms[:2] {
			any := f.of([]string{"0.0.0.0", "::"}, int32(700+i))
			bound := func(socket string, to netip.AddrPort) func(p *place) string {
				return func(p *place) string {
					p.open(socket, clients.TCP, to)
					if e := p.Do(clients.Call{Do: clients.Bind, Socket: socket, Addr: any}); e.Error != "" {
						return e.Error
					}
					return p.again(socket, to)
				}
			}
			taken := but{here, "connect EADDRNOTAVAIL", "two connections can't have the same ends: docs/runtime.md"}
			b.once("from a source port, "+f.name, "ok", bound("one", f.of(w.vips(), 80)))
			b.once("from it to another Service", "ok", bound("two", f.of(second.vips(), 80)), taken)
		}
	}, false},
	{"many sockets came and went", func(b *bed) {
		w, busy := udpWorld("old", ep("p3")...), udpWorld("busy", ep("p4")...)
		b.put(w)
		b.put(busy)
		b.connectAll(w, "")
		count := 20_000
		if long() {
			count = 200_000
		}
		for _, f := range forms {
			b.once("many sockets, "+f.name, "ok", func(p *place) string {
				return done(p.Do(clients.Call{Do: clients.Churn, Mode: clients.UDPConnected, Addr: f.of(busy.vips(), 53), Count: count}))
			})
		}
		b.talkAll(w, "", "p3:53")
		w.endpoints = ep("p4")
		b.put(w)
		b.talkAll(w, "", "p4:53")
	}, false},
}
