package main

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/clients"
)

// nodeAddr is an address of the node's that pods reach.
const nodeAddr = "192.0.2.1:6443"

// kubeProxyRules are those that kube-proxy writes in its nftables mode for the API service, cut down to what leads a
// connection to a backend.
const kubeProxyRules = `
add table ip kube-proxy
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add chain ip kube-proxy services
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy service-2QRHZV4L-default/kubernetes/tcp/https
add chain ip kube-proxy endpoint-NQOVTKAF-default/kubernetes/tcp/https__192.0.2.1/6443
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy service-2QRHZV4L-default/kubernetes/tcp/https numgen random mod 1 vmap { 0 : goto endpoint-NQOVTKAF-default/kubernetes/tcp/https__192.0.2.1/6443 }
add rule ip kube-proxy endpoint-NQOVTKAF-default/kubernetes/tcp/https__192.0.2.1/6443 meta l4proto tcp dnat to 192.0.2.1:6443
add element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 : goto service-2QRHZV4L-default/kubernetes/tcp/https }
`

func (n node) nft(script string) {
	n.Helper()
	cmd := n.Command(n.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.Fatalf("nft: %v\n%s", err, out)
	}
}

// scopeArgs is an init with one API server that pods reach too.
func scopeArgs(more ...string) []string {
	return append([]string{"init", "--service-ips", vip4, "--endpoints", nodeAddr, "--persist", "off"}, more...)
}

func TestScopeThatCutsOffIsRefused(t *testing.T) {
	n := newNode(t)
	if err := n.AddAddr("192.0.2.1/32"); err != nil {
		t.Fatal(err)
	}
	n.echo("tcp", "b4", nodeAddr)
	fresh := n.state()
	for _, scope := range []string{"off", "host"} {
		n.run(scopeArgs("--scope", scope)...).exits(bootstrap.ExitAttach).says("--scope "+scope, "nothing else on this node serves "+vip4)
		n.stateUnchanged(fresh)
		n.run(scopeArgs("--scope", scope, "--dry-run")...).exits(bootstrap.ExitAttach)
	}
	n.run(scopeArgs()...).exits(0)
	serving := n.state()
	for _, scope := range []string{"off", "host"} {
		n.run(scopeArgs("--scope", scope)...).exits(bootstrap.ExitAttach)
		n.stateUnchanged(serving)
	}
	if err := n.connect(vip4); err != nil {
		t.Error(err)
	}
}

// TestScopes lets the node and a pod connect. Where kube-proxy's rules serve the address, a narrower scope is fine.
func TestScopes(t *testing.T) {
	n := newNode(t)
	if err := n.AddAddr("192.0.2.1/32"); err != nil {
		t.Fatal(err)
	}
	n.echo("tcp", "b4", nodeAddr)
	pod, err := n.AddPod("pod", netip.MustParseAddr("10.244.0.5"))
	if err != nil {
		t.Fatal(err)
	}
	n.nft(kubeProxyRules)
	// What we leave alone is to fail at once: on a real node the rules would lead it on.
	if err := errors.Join(n.Unreachable("10.96.0.1/32"), pod.Do(func() error {
		vip := &net.IPNet{IP: net.IPv4(10, 96, 0, 1), Mask: net.CIDRMask(32, 32)}
		return netlink.RouteAdd(&netlink.Route{Dst: vip, Type: unix.RTN_UNREACHABLE})
	})); err != nil {
		t.Fatal(err)
	}
	p := clients.At(client)
	for _, tc := range []struct {
		scope     string
		host, pod bool
		hooks     int
		forbid    string
	}{
		{"host", true, false, 8, "so-netns-cookie"},
		{"all", true, true, 8, ""},
		{"off", false, false, 0, ""},
		{"off", false, false, 0, "so-netns-cookie"},
		{"host", true, false, 8, ""},
		{"host", true, false, 8, "so-netns-cookie"},
	} {
		t.Run(tc.scope+" "+tc.forbid, func(t *testing.T) {
			n.T, n.inside = t, tc.forbid != ""
			args := scopeArgs("--scope", tc.scope, "-o", "json")
			if tc.forbid != "" {
				args = append(args, "--forbid-feature", tc.forbid)
			}
			r := n.run(args...).exits(0).report()
			if len(r.Hooks) != tc.hooks || len(n.attached()) != tc.hooks {
				t.Errorf("%d hooks reported, %d attached; want %d", len(r.Hooks), len(n.attached()), tc.hooks)
			}
			if tc.scope == "off" {
				checkProofs(t, r, vip4+" ok=true got=answered directly")
			}
			if len(n.table().Frontends) == 0 {
				t.Error("the table isn't seeded")
			}
			if e := p.Run(t, n.Lab, clients.TCP, vip4, "x")[0]; (e.Peer == vip4) != tc.host {
				t.Errorf("the host: %+v, want it served: %t", e, tc.host)
			}
			if e := p.Run(t, pod, clients.TCP, vip4, "x")[0]; (e.Peer == vip4) != tc.pod {
				t.Errorf("the pod: %+v, want it served: %t", e, tc.pod)
			}
			if tc.scope == "off" {
				n.run("status").exits(bootstrap.ExitProof).says("not attached, by --scope off", "something else serves")
			} else {
				n.run("status").exits(0).says("serving")
			}
		})
	}
}

// TestScopeHostNeedsCookies: a kernel that can't tell the host's sockets from a pod's refuses it by name.
func TestScopeHostNeedsCookies(t *testing.T) {
	n := newNode(t)
	if err := n.AddAddr("192.0.2.1/32"); err != nil {
		t.Fatal(err)
	}
	n.echo("tcp", "b4", nodeAddr)
	n.nft(kubeProxyRules)
	before := n.state()
	for _, forbid := range []string{"netns-cookie", "so-netns-cookie,cgroup-link"} {
		n.run(scopeArgs("--scope", "host", "--forbid-feature", forbid)...).exits(bootstrap.ExitUsage).says("--scope host", "cookie")
	}
	// A program could tell, but not from outside of what it may be attached to.
	n.run(scopeArgs("--scope", "host", "--forbid-feature", "so-netns-cookie")...).exits(bootstrap.ExitUsage).says("--scope host", "this process is not in the cgroup")
	n.stateUnchanged(before)
}

// TestInitWithoutUDP leaves UDP alone, also what an init before had attached for it.
func TestInitWithoutUDP(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	n.echo("udp", "d4", "127.0.0.1:5353")
	p := clients.At(client)
	for _, udp := range []bool{true, false, true} {
		line, hooks := []string{"--extra-service", extra4}, 8
		if !udp {
			line, hooks = append(line, "--udp=false"), 4
		}
		r := n.init(line...)
		if len(r.Hooks) != hooks || len(n.attached()) != hooks {
			t.Errorf("%d hooks reported, %d attached; want %d", len(r.Hooks), len(n.attached()), hooks)
		}
		for _, mode := range []clients.Mode{clients.UDPConnected, clients.UDPUnconnected} {
			if e := p.Run(t, n.Lab, mode, dns4, "x")[0]; (e.Server() == "d4") != udp {
				t.Errorf("UDP %t, %s: %+v", udp, mode, e)
			}
		}
		n.checkServes()
	}
}
