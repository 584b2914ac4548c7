package running

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/kube/running/probe"
	"github.com/firsthop/firsthop/test/standin"
)

// udpClients: UDP clients that keep their source port, as resolvers and agents do, reach the new backend within a second
// after theirs is gone, however they use their socket. The one that is gone says nothing: no ICMP tells the client.
func (f *fixture) udpClients(t *testing.T) {
	const port = 53
	ctx, cancel := context.WithCancel(t.Context())
	var out outages
	var watcher sync.WaitGroup
	watcher.Go(func() { out.watchMachine(ctx) })
	type life struct {
		clients []*stream
		gone    int64 // when the backend was
	}
	var lives []life
	for family := range 2 {
		w := newWorld([]string{"udp-4", "udp-6"}[family])
		w.svc.Spec.Ports = []corev1.ServicePort{sp("dns", corev1.ProtocolUDP, port, port)}
		w.endpoints = ep("p5")
		addr := netip.AddrPortFrom(f.podAddr("p5", family), port)
		old, err := standin.StartUDPEcho(f.cluster.Hub, "old", addr)
		if err != nil {
			t.Fatal(err)
		}
		w.put(f, f.cluster)
		f.fence.await()
		var clients []*stream
		for i, proto := range []probe.Proto{probe.UDP, probe.UDPKept, probe.UDPLoose} {
			clients = append(clients, f.from["pod"].follow(probe.Request{
				Proto: proto, Target: f.target(w, "cluster:53", family), Every: 20, Timeout: 100, Source: uint16(900 + 10*family + i),
			}))
		}
		reach := func(pod string) {
			t.Helper()
			for _, c := range clients {
				eventually(t, c.what+" reaches "+pod, func() string {
					list := c.results()
					if len(list) == 0 || f.podName(list[len(list)-1].Server) != pod+":53" {
						return "it does not"
					}
					return ""
				})
			}
		}
		reach("p5")
		old.Close()
		mute, err := f.cluster.Hub.ListenPacket("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		w.endpoints = ep("p3")
		w.put(f, f.cluster)
		from := monotonic()
		reach("p3")
		lives = append(lives, life{clients, from})
		for _, c := range clients {
			c.end()
		}
		mute.Close()
	}
	cancel()
	watcher.Wait()
	out.join()
	for _, l := range lives {
		for _, c := range l.clients {
			for _, r := range c.results() {
				if after := out.served(l.gone, r.Begin); after > late && f.podName(r.Server) != "p3:53" {
					t.Errorf("%s: %s after the backend had gone: %q, %s", c.what, after, r.Server, r.Error)
				}
				if _, p, _ := net.SplitHostPort(r.Peer); r.Error == "" && (p < "900" || p > "912") {
					t.Errorf("%s: the backend saw it come from %s", c.what, r.Peer)
				}
			}
		}
	}
}
