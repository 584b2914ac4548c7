package wire

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/firsthop/firsthop/bpf"
)

// ruleSet is what other agents have netfilter do, for both families.
type ruleSet struct {
	name        string
	masquerades bool // what clients outside send to pods elsewhere
	rules       string
}

// pods are the addresses of all pods, and of this node's.
const pods = `
	set pods { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
	set pods6 { type ipv6_addr; flags interval; elements = { fd00::/16 }; }
	set own { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
	set own6 { type ipv6_addr; flags interval; elements = { fd00:1::/32 }; }
`

// ruleSets are what CNIs, host firewalls and kube-proxy write, as far as it concerns what is forwarded.
var ruleSets = []ruleSet{
	{name: "none", rules: ""},
	{name: "kube-proxy", rules: `table inet kube-proxy {
	chain filter-forward { type filter hook forward priority -110; policy accept; ct state invalid counter drop; ct state established,related accept; }
	chain filter-input { type filter hook input priority -110; policy accept; ct state new jump check; }
	chain check { }
	chain nat-postrouting { type nat hook postrouting priority 100; policy accept; meta mark & 0x4000 == 0 return; masquerade fully-random; }
	}`},
	{name: "flannel", masquerades: true, rules: `table inet flannel {` + pods + `
	chain forward { type filter hook forward priority 0; policy drop;
		ip saddr @pods accept; ip daddr @pods accept; ip6 saddr @pods6 accept; ip6 daddr @pods6 accept; meta l4proto ipv6-icmp accept; ip protocol icmp accept; }
	chain postrouting { type nat hook postrouting priority 100; policy accept;
		meta mark & 0x4000 == 0x4000 return
		ip saddr @own ip daddr @pods return; ip6 saddr @own6 ip6 daddr @pods6 return
		ip saddr @pods ip daddr != 224.0.0.0/4 masquerade fully-random
		ip6 saddr @pods6 ip6 daddr != ff00::/8 masquerade fully-random
		ip saddr != @pods ip daddr @own return; ip6 saddr != @pods6 ip6 daddr @own6 return
		ip saddr != @pods ip daddr @pods masquerade fully-random
		ip6 saddr != @pods6 ip6 daddr @pods6 masquerade fully-random
	}
	}`},
	{name: "kindnet", rules: `table inet kindnet {` + pods + `
	chain forward { type filter hook forward priority 0; policy accept; ct state invalid counter drop; }
	chain postrouting { type nat hook postrouting priority 90; policy accept;
		ct state != new return
		ip saddr != @own return; ip6 saddr != @own6 return
		ip daddr @pods return; ip6 daddr @pods6 return
		masquerade fully-random
	}
	}`},
	{name: "Calico", rules: `table inet calico {` + pods + `
	chain raw { type filter hook prerouting priority -300; policy accept;
		iifname { "fh-routed", "cni0" } fib saddr . iif oif missing counter drop; }
	chain forward { type filter hook forward priority 0; policy drop;
		oifname { "fh-routed", "cni0" } jump to-workload
		iifname { "fh-routed", "cni0" } jump from-workload
		iifname "eth0" accept; iifname "eth1" accept; iifname "flannel.1" accept
	}
	chain to-workload { ct state established,related accept; ct state invalid counter drop; tcp dport 9090 accept; udp dport 9090 accept; counter drop; }
	chain from-workload { ct state established,related accept; ct state invalid counter drop; accept; }
	chain postrouting { type nat hook postrouting priority 100; policy accept;
		ip saddr @pods ip daddr != @pods masquerade random,fully-random
		ip6 saddr @pods6 ip6 daddr != @pods6 masquerade random,fully-random
	}
	}`},
	{name: "firewalld", masquerades: true, rules: `table inet firewalld {` + pods + `
	chain mangle { type filter hook prerouting priority -140; policy accept;
		icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
		meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
	chain input { type filter hook input priority 10; policy accept;
		ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop
		meta l4proto { icmp, ipv6-icmp } accept; tcp dport 9090 accept; udp dport { 9090, 8472 } accept
		reject with icmpx admin-prohibited; }
	chain forward { type filter hook forward priority 10; policy accept;
		ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop
		ip daddr @pods accept; ip saddr @pods accept; ip6 daddr @pods6 accept; ip6 saddr @pods6 accept
		reject with icmpx admin-prohibited; }
	chain postrouting { type nat hook postrouting priority 110; policy accept;
		oifname { "eth0", "eth1", "flannel.1" } masquerade; }
	}`},
}

// netfilter has the node's netfilter do what a rule set says.
func (b *bench) netfilter(t testing.TB, set ruleSet) {
	t.Helper()
	b.nft(t, set.rules)
	b.masquerades.Store(set.masquerades)
	// It is another node now: a CNI that masquerades to any port may choose one of a flow that has ended.
	b.flush(t)
	must(t, b.node.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
}

// nft replaces all rules.
func (b *bench) nft(t testing.TB, rules string) {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft, of package nftables")
	}
	cmd := b.node.Command(t.Context(), nft, "-f", "-")
	cmd.Stdin = strings.NewReader("flush ruleset\n" + rules + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// rpFilter sets the reverse path filter of the node, for all devices or for each one.
func (b *bench) rpFilter(t testing.TB, all, device int) {
	t.Helper()
	must(t, b.node.Sysctl("net.ipv4.conf.all.rp_filter", fmt.Sprint(all)))
	for _, d := range []string{"eth0", "eth1", "flannel.1", "cni0", "fh-routed"} {
		must(t, b.node.Sysctl("net/ipv4/conf/"+d+"/rp_filter", fmt.Sprint(device)))
	}
}

// tryMore is tryAll with long datagrams and all ends of connections.
func (b *bench) tryMore(m machine, tos addresses) error {
	var all errgroup.Group
	all.Go(func() error { return b.tryAll(m, tos) })
	all.Go(func() error {
		return eachKind(func(f family, k kind, _ netip.AddrPort) error { return tryEnds(m, tos(f, k)[0]) })
	})
	return all.Wait()
}

// All works whatever other agents have netfilter and the reverse path filter do, and no sysctl is changed for it.
func TestNetfilterOfOthersIsNoObstacle(t *testing.T) {
	for _, rp := range []struct{ all, device int }{{0, 0}, {1, 1}, {2, 2}, {1, 0}, {0, 2}} {
		t.Run(fmt.Sprintf("rp_filter %d and %d", rp.all, rp.device), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.serve(t)
			b.watch(t)
			b.rpFilter(t, rp.all, rp.device)
			for _, set := range ruleSets {
				t.Run(set.name, func(t *testing.T) {
					b.netfilter(t, set)
					must(t, b.tryMore(b.client, byFirstUplink))
					must(t, b.tryMore(b.neighbour, bySecondUplink))
				})
			}
			if dropped := b.dropped(t, bpf.CountRedirect); len(dropped) > 0 {
				t.Errorf("dropped %v", dropped)
			}
		})
	}
}
