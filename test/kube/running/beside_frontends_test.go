package running

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/kube/cluster"
)

// reachAll asks a frontend by new sockets of each form, TCP and UDP.
func (b *bed) reachAll(what string, ips []string, tcpPort, udpPort int32, want string, buts ...but) {
	b.t.Helper()
	for _, f := range forms {
		if tcpPort != 0 {
			to := f.of(ips, tcpPort)
			b.see(fmt.Sprintf("TCP to %s, %s", what, f.name), with80(want), func(p *place) string { return p.reach(clients.TCP, to, 1) }, ported(buts, with80)...)
		}
		if udpPort != 0 {
			to := f.of(ips, udpPort)
			b.see(fmt.Sprintf("UDP to %s, %s", what, f.name), with53(want), func(p *place) string { return p.reach(clients.UDPConnected, to, 1) }, ported(buts, with53)...)
		}
	}
}

// A want of a pod's name alone is that of the pod's port.
func with80(want string) string { return withPort(want, ":80") }
func with53(want string) string { return withPort(want, ":53") }

func withPort(want, port string) string {
	if len(want) == 2 {
		return want + port
	}
	return want
}

func ported(buts []but, with func(string) string) (out []but) {
	for _, o := range buts {
		o.want = with(o.want)
		out = append(out, o)
	}
	return out
}

func (b *bed) nodeIPs(name string) []string {
	n := b.nodes[name]
	return []string{n.IPs[0].String(), n.IPs[1].String()}
}

// frontendScenes are addresses at which Services are served.
var frontendScenes = []scene{
	{"node ports of every node", func(b *bed) {
		w := udpWorld("every-node", endpoint{pod: "p3", node: there})
		w.svc.Spec.Type = nodePort
		b.put(w)
		tcp, udp := w.svc.Spec.Ports[1].NodePort, w.svc.Spec.Ports[0].NodePort
		for _, name := range proxies {
			if name != here { // nobody serves that one's node ports to others
				b.reachAll("the node port of "+name, b.nodeIPs(name), tcp, udp, "p3")
			}
		}
		b.reachAll("the node port of "+here, b.nodeIPs(here), tcp, udp, "p3", but{"kube-proxy", "connect ECONNREFUSED|timeout", "no packets are served at " + here})
	}, false},
	{"node ports on loopback", func(b *bed) {
		w := udpWorld("loopback", endpoint{pod: "p3", node: there})
		w.svc.Spec.Type = nodePort
		b.put(w)
		ports := map[clients.Mode]int32{clients.TCP: w.svc.Spec.Ports[1].NodePort, clients.UDPConnected: w.svc.Spec.Ports[0].NodePort}
		for _, mode := range []clients.Mode{clients.TCP, clients.UDPConnected} {
			want, none := "p3:80", "connect ECONNREFUSED"
			if mode != clients.TCP {
				want, none = "p3:53", refused
			}
			for _, at := range []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::1", "::"} {
				to := netip.AddrPortFrom(netip.MustParseAddr(at), uint16(ports[mode]))
				buts := []but{{"here node", want, "as with iptables, in both families"}}
				if to.Addr().Is4() || to.Addr().Is4In6() {
					buts = append(buts, but{"iptables node", want, "it sets route_localnet"})
				}
				// The kernel says that a socket which asked for an unspecified address is connected to loopback.
				b.see(fmt.Sprintf("%s to %s", mode, at), none, func(p *place) string { return p.reachAny(mode, to) }, buts...)
			}
		}
	}, false},
	{"an external IP that is the nodes' own", func(b *bed) {
		w := udpWorld("external-own", endpoint{pod: "p3", node: there})
		w.svc.Spec.Ports[0].Port, w.svc.Spec.Ports[1].Port = 8053, 8080
		for _, name := range proxies {
			w.svc.Spec.ExternalIPs = append(w.svc.Spec.ExternalIPs, b.nodeIPs(name)...)
		}
		b.put(w)
		for _, name := range proxies {
			b.reachAll("an external IP, that of "+name, b.nodeIPs(name), 8080, 8053, "p3")
		}
	}, false},
	{"load balancers", func(b *bed) {
		w := udpWorld("balanced", endpoint{pod: "p3", node: there})
		w.svc.Spec.Type = loadBalancer
		vip, proxy := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy
		w.svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
			{IP: "203.0.113.77", IPMode: &vip}, {IP: "fd00:113::77", IPMode: &vip},
			{IP: "203.0.113.78", IPMode: &proxy}, {IP: "fd00:113::78", IPMode: &proxy},
		}
		b.put(w)
		b.reachAll("its VIP", []string{"203.0.113.77", "fd00:113::77"}, 80, 53, "p3")
		b.reachAll("that of a proxy", []string{"203.0.113.78", "fd00:113::78"}, 80, 0, "connect ENETUNREACH",
			but{"pod", "connect ENETUNREACH", "nobody has it"})
		for _, name := range proxies { // pods are allowed, and nodes are not
			in := b.nodes[name].Pod(1)
			w.svc.Spec.LoadBalancerSourceRanges = append(w.svc.Spec.LoadBalancerSourceRanges, in[0].String()+"/32", in[1].String()+"/128")
		}
		b.put(w)
		ips := []string{"203.0.113.77", "fd00:113::77"}
		b.reachAll("its VIP, for some", ips, 80, 0, "p3",
			but{"node", "connect timeout", "it is dropped"}, but{"here node", "connect EHOSTUNREACH", "at once"})
		b.reachAll("its VIP, for some", ips, 0, 53, "p3",
			but{"node", "timeout|" + refused, "the node's own filter drops it"}, but{"here node", refused, "it waits at the discard port of loopback, which says so"})
		b.reachAll("its cluster IP", w.vips(), 80, 53, "p3")
	}, true},
	{"session affinity", func(b *bed) {
		w := udpWorld("sticky", ep("p3", "p4", "p5", "p6")...)
		w.svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		timeout := func(seconds int32) {
			w.svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
			b.put(w)
		}
		timeout(60)
		for _, f := range forms {
			for mode, port := range map[clients.Mode]int32{clients.TCP: 80, clients.UDPConnected: 53} {
				to := f.of(w.vips(), port)
				b.once(fmt.Sprintf("%s, %s: twenty sockets reach", mode, f.name), "one", func(p *place) string {
					if got := p.reach(mode, to, 20); len(got) > len("p3:53") {
						return got
					}
					return "one"
				})
			}
		}
		timeout(1)
		for _, f := range forms[:2] {
			to := f.of(w.vips(), 53)
			b.once("UDP, "+f.name+": when it is over", "others", func(p *place) string {
				first := p.reach(clients.UDPConnected, to, 1)
				for range 12 { // all lead to the first once in 10^7
					time.Sleep(2100 * time.Millisecond) // no condition: nothing may be asked while the time runs
					if p.reach(clients.UDPConnected, to, 1) != first {
						return "others"
					}
				}
				return first
			})
		}
	}, true},
	{"a cluster IP of the nodes' own", func(b *bed) {
		w := udpWorld("nodelocal", ep("p3")...)
		b.put(w)
		b.reachAll("the cluster IP", w.vips(), 80, 53, "p3")
		b.connectAll(w, "")
		b.openLoose()
		b.talkAll(w, "", "p3:53")
		b.looseAll(w, "p3:53")
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns"}} // not every kernel has dummy devices
		for _, name := range proxies {
			n := b.nodes[name]
			if name != here { // as the add-on does
				b.notrack(n, w.vips())
			}
			err := n.Do(func() error {
				if err := netlink.LinkAdd(link); err != nil {
					return err
				}
				for i, ip := range w.vips() {
					addr, err := netlink.ParseAddr(ip + []string{"/32", "/128"}[i])
					if err != nil {
						return err
					}
					addr.Flags |= unix.IFA_F_NODAD
					if err := netlink.AddrAdd(link, addr); err != nil {
						return err
					}
				}
				return netlink.LinkSetUp(link)
			})
			if err != nil {
				b.t.Fatal(err)
			}
			for _, ip := range w.vips() {
				echoUDP(b.t, n.Lab, netip.AddrPortFrom(netip.MustParseAddr(ip), 53))
				for _, port := range []uint16{80, 8080} {
					echoTCP(b.t, n.Lab, netip.AddrPortFrom(netip.MustParseAddr(ip), port))
				}
			}
		}
		cache := func() {
			for _, f := range forms {
				for port, mode := range map[int32]clients.Mode{53: clients.UDPConnected, 80: clients.TCP, 8080: clients.TCP} {
					to := f.of(w.vips(), port)
					b.see(fmt.Sprintf("%s to the cluster IP, port %d, %s", mode, port, f.name),
						netip.AddrPortFrom(to.Addr().Unmap(), to.Port()).String(), func(p *place) string { return p.reach(mode, to, 1) })
				}
			}
		}
		cache()
		for _, f := range forms {
			to := f.of(w.vips(), 53)
			answer := netip.AddrPortFrom(to.Addr().Unmap(), to.Port()).String()
			b.see("talk of before "+f.name, answer, func(p *place) string { return p.talk(f.name, to) })
			b.see("unconnected "+f.name, answer, func(p *place) string { return p.sendReceive("loose "+f.name, to) })
		}
		b.kill()
		b.revive()
		cache()
		for _, name := range proxies {
			if err := b.nodes[name].Do(func() error { return netlink.LinkDel(link) }); err != nil {
				b.t.Fatal(err)
			}
		}
		for _, f := range forms {
			to := f.of(w.vips(), 80)
			b.see("without the interface, "+f.name, "p3:80", func(p *place) string { return p.reach(clients.TCP, to, 1) },
				but{"kube-proxy", "connect timeout|connect ENETUNREACH", "the add-on's rules are there still"})
		}
	}, true},
	// The last one: kube-proxy loses its API server.
	{"an external IP and port that are an API server's", func(b *bed) {
		w := udpWorld("evil", ep("p3")...)
		w.svc.Spec.Ports[1].Port = 6443
		server := b.f.cluster.Servers[0].Address
		w.svc.Spec.ExternalIPs = []string{server.Addr().String()}
		w.put(b.f, b.f.cluster)
		caught := but{"kube-proxy", "p3:80", "so are its own connections, and the kubelet's"}
		ask := func(p *place) string {
			got := p.reach(clients.TCP, server, 1)
			if strings.HasPrefix(got, "parse reply") || strings.HasPrefix(got, "recv") {
				return "the API server"
			}
			return got
		}
		b.see("the API server's address", "the API server", ask, caught)
		b.fences = b.fences[:1]
		b.fence() // written after it
		b.once("the API server's address, still", "the API server", ask, caught)
		if out, _ := b.f.node.command("status"); !strings.Contains(out, "default/evil") {
			b.t.Errorf("status does not name the Service:\n%s", out)
		}
		b.f.node.run.Kill()
		b.start(here)
		b.fence()
		b.once("after a restart", "the API server", ask, caught)
		b.remove(w)
		b.put(udpWorld("after-evil", ep("p3")...))
	}, false},
}

// notrack keeps packets to and from addresses from connection tracking, so that kube-proxy's rules don't see them.
func (b *bed) notrack(n *cluster.Node, ips []string) {
	b.t.Helper()
	rules := "table inet cache {\n"
	for _, chain := range []string{"prerouting", "output"} {
		rules += "chain " + chain + " { type filter hook " + chain + " priority raw;\n"
		for _, way := range []string{"daddr", "saddr"} {
			rules += fmt.Sprintf("ip %s %s notrack\nip6 %s %s notrack\n", way, ips[0], way, ips[1])
		}
		rules += "}\n"
	}
	cmd := n.Command(b.t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules + "}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("nft: %v\n%s", err, out)
	}
}

// reachAny is what a new socket comes to, whomever it says that it is connected to.
func (p *place) reachAny(mode clients.Mode, to netip.AddrPort) string {
	p.open("new", mode, to)
	if e := p.Do(clients.Call{Do: clients.Connect, Socket: "new", Addr: to}); e.Error != "" {
		return e.Error
	}
	return p.talk("new", netip.AddrPort{})
}
