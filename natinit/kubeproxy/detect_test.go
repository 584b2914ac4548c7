package kubeproxy

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const ip4Rules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m comment --comment "default/kubernetes:https cluster IP" -m tcp -p tcp -d 10.96.0.1 --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SERVICES -m comment --comment "kube-system/dns:dns cluster IP" -m udp -p udp -d 10.96.0.10 --dport 53 -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
`

var ip6Rules = strings.NewReplacer("10.96.0.10", "fd00:96::a", "10.96.0.1", "fd00:96::1").Replace(ip4Rules)

const nftables6Rules = `
add table ip6 kube-proxy
add map ip6 kube-proxy service-ips { type ipv6_addr . inet_proto . inet_service : verdict ; }
add chain ip6 kube-proxy service-x
add element ip6 kube-proxy service-ips { fd00:96::1 . tcp . 443 : goto service-x }
add element ip6 kube-proxy service-ips { fd00:96::a . udp . 53 : goto service-x }
`

func TestDetectReadsRules(t *testing.T) {
	real := []string{
		"172.30.0.41:80 yes",
		"172.30.0.41:81 no",
		"172.30.0.44:80 yes",
		"192.168.99.33:80 yes", // an external IP
		"5.6.7.8:80 yes",       // a load balancer's, with source ranges
		"172.30.0.46:80 no",    // no endpoints
		"[::ffff:172.30.0.41]:80 yes",
		"[fd00:96::1]:443 no",
	}
	own6 := []string{"[fd00:96::1]:443 yes", "[fd00:96::1]:80 no", "[fd00:96::a]:53 no", "10.96.0.1:443 no"}
	for _, test := range []struct {
		name   string
		setUp  func(node)
		found  string // the sources, comma-separated
		served []string
	}{
		{"what kube-proxy writes with nft",
			func(n node) { n.restore("nftables-1.36", "nft", "-f", "-") },
			"nftables ip", real},
		{"what kube-proxy writes with iptables-nft",
			func(n node) { n.restore("iptables-1.36", "iptables-nft-restore", "--noflush") },
			"iptables-nft ip", real},
		{"what kube-proxy writes with iptables-legacy",
			func(n node) { n.restore("iptables-1.36", "iptables-legacy-restore", "--noflush") },
			"iptables-legacy ip", real},
		{"both kinds of iptables, IPv4",
			func(n node) {
				n.run(ip4Rules, "iptables-nft-restore")
				n.run(ip4Rules, "iptables-legacy-restore")
			},
			"iptables-nft ip, iptables-legacy ip", []string{"10.96.0.1:443 yes", "10.96.0.10:53 no"}},
		{"nft, IPv6", func(n node) { n.run(nftables6Rules, "nft", "-f", "-") }, "nftables ip6", own6},
		{"iptables-nft, IPv6", func(n node) { n.run(ip6Rules, "ip6tables-nft-restore") }, "iptables-nft ip6", own6},
		{"iptables-legacy, IPv6", func(n node) { n.run(ip6Rules, "ip6tables-legacy-restore") }, "iptables-legacy ip6", own6},
		{"an nft table with nothing in it",
			func(n node) { n.run("add table ip kube-proxy", "nft", "-f", "-") },
			"nftables ip", []string{"10.96.0.1:443 no"}},
		{"an iptables-nft canary only",
			func(n node) { n.run("", "iptables-nft", "-t", "mangle", "-N", "KUBE-PROXY-CANARY") },
			"iptables-nft ip", []string{"10.96.0.1:443 no"}},
		{"an iptables-legacy canary only",
			func(n node) { n.run("", "iptables-legacy", "-t", "filter", "-N", "KUBE-PROXY-CANARY") },
			"iptables-legacy ip", []string{"10.96.0.1:443 no"}},
		{"iptables-nft chains that nothing jumps to",
			func(n node) {
				n.run(ip4Rules, "iptables-nft-restore")
				n.run("", "iptables-nft", "-t", "nat", "-F", "OUTPUT")
			},
			"iptables-nft ip", []string{"10.96.0.1:443 no"}},
		{"iptables-legacy chains that nothing jumps to",
			func(n node) {
				n.run(ip4Rules, "iptables-legacy-restore")
				n.run("", "iptables-legacy", "-t", "nat", "-F", "OUTPUT")
			},
			"iptables-legacy ip", []string{"10.96.0.1:443 no"}},
		{"an iptables-nft rule with a condition of somebody's own",
			func(n node) {
				n.run(ip4Rules, "iptables-nft-restore")
				n.run("", "iptables-nft", "-t", "nat", "-I", "KUBE-SERVICES", "-s", "192.0.2.0/24", "-d", "10.96.0.2", "-p", "tcp", "--dport", "80", "-j", "KUBE-SVC-NPX46M4PTMTKRN6Y")
			},
			"iptables-nft ip", []string{"10.96.0.1:443 yes", "10.96.0.2:80 perhaps no", "[fd00:96::1]:443 no"}},
		{"an iptables-legacy rule with a condition of somebody's own",
			func(n node) {
				n.run(ip4Rules, "iptables-legacy-restore")
				n.run("", "iptables-legacy", "-t", "nat", "-I", "KUBE-SERVICES", "-i", "lo", "-d", "10.96.0.2", "-p", "tcp", "--dport", "80", "-j", "KUBE-SVC-NPX46M4PTMTKRN6Y")
			},
			"iptables-legacy ip", []string{"10.96.0.1:443 yes", "10.96.0.2:80 perhaps no", "[fd00:96::1]:443 no"}},
		{"the device kube-ipvs0",
			func(n node) { n.addDevice("10.96.0.1/32", "fd00:96::1/128") },
			"kube-ipvs0", []string{"10.96.0.1:443 no"}}, // no IPVS behind it
		{"what the kubelet makes on every node",
			func(n node) {
				for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
					for _, chain := range []string{"KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"} {
						n.run("", iptables, "-t", "nat", "-N", chain)
					}
				}
				n.run("add table ip somebody", "nft", "-f", "-")
			},
			"", []string{"10.96.0.1:443 no", "[fd00:96::1]:443 no"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			test.setUp(n)
			p := n.detect()
			var found []string
			for _, e := range p.Evidence {
				if e.Found == Yes {
					found = append(found, e.Source)
				} else if e.Found != No {
					t.Errorf("%s: %s, %s", e.Source, e.Found, e.Detail)
				}
			}
			if got := strings.Join(found, ", "); got != test.found {
				t.Errorf("found %q, want %q", got, test.found)
			}
			want := LeftOver
			if test.found == "" {
				want = Absent
			}
			if p.State != want {
				t.Errorf("state %q, want %q", p.State, want)
			}
			checkServed(t, p, test.served...)
			checkServed(t, n.detect(addrsOf(test.served...)...), test.served...)
		})
	}
}

// What nobody asked for is not known, and rules are read anew only after they changed.
func TestDetectorLooksUpWhatIsAsked(t *testing.T) {
	for _, test := range []struct {
		name, add, change string
		command           []string
	}{
		{"nftables", strings.NewReplacer("ip6", "ip", "ipv6_addr", "ipv4_addr", "fd00:96::1", "10.96.0.1", "fd00:96::a", "10.96.0.10").Replace(nftables6Rules),
			"delete element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 }", []string{"nft", "-f", "-"}},
		{"iptables-nft", ip4Rules, strings.Replace(ip4Rules, "10.96.0.1 ", "10.96.0.2 ", 1), []string{"iptables-nft-restore"}},
		{"iptables-legacy", ip4Rules, strings.Replace(ip4Rules, "-A KUBE-SERVICES", "-A KUBE-SERVICES -d 10.96.0.3 -j RETURN\n-A KUBE-SERVICES", 1) + "", []string{"iptables-legacy-restore"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.run(test.add, test.command...)
			d := NewDetector(Config{Proc: n.proc})
			api := netip.MustParseAddrPort("10.96.0.1:443")
			p := n.detectWith(d, api)
			checkServed(t, p, "10.96.0.1:443 yes", "10.96.0.10:53 perhaps no")
			if p.ServesAny() != true {
				t.Error("the one address is none of any")
			}
			checkServed(t, n.detectWith(d), "10.96.0.1:443 perhaps no")
			before := d.unchanged[test.name+" ip"].at
			n.detectWith(d)
			if again := d.unchanged[test.name+" ip"].at; again != before {
				t.Error("rules that did not change were read again")
			}
			n.run(test.change, test.command...)
			want := "10.96.0.1:443 no"
			if test.name == "iptables-legacy" {
				want = "10.96.0.1:443 yes"
			}
			checkServed(t, n.detectWith(d, api), want)
			if again := d.unchanged[test.name+" ip"].at; again == before {
				t.Error("rules that changed were not read again")
			}
		})
	}
}

func TestDetectChangesNothing(t *testing.T) {
	n := newNode(t)
	state := func() string {
		// `iptables -L` would make a table; so only lists of what is there.
		return n.run("", "sh", "-c", "cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names; nft list ruleset; ip -o link; cat /proc/modules 2>/dev/null; :")
	}
	before := state()
	if p := n.detect(); p.State != Absent {
		t.Errorf("state %q on a clean node", p.State)
	}
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// kube-proxy writes while we read: it replaces chains and elements, and never
// takes a Service away for that. A look may then be unsure, but not wrong.
func TestDetectDuringWrites(t *testing.T) {
	const add = "add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }\nadd chain ip kube-proxy service-x\n"
	iptables := func(i int) string {
		rules := manyIptables(100 + i%2*100)
		if i == 0 {
			return rules
		}
		return strings.Replace(rules, jumpToServices, "", 1) // made once
	}
	for _, test := range []struct {
		name    string
		command []string
		rules   func(i int) string
	}{
		{"nft", []string{"nft", "-f", "-"}, func(i int) string {
			return "add table ip kube-proxy\ndelete table ip kube-proxy\nadd table ip kube-proxy\n" + add + manyElements(500+i%2*500)
		}},
		{"iptables-nft", []string{"iptables-nft-restore", "--noflush"}, iptables},
		{"iptables-legacy", []string{"iptables-legacy-restore", "--noflush"}, iptables},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.run(test.rules(0), test.command...)
			const writes = 15
			done := make(chan struct{})
			t.Cleanup(func() { <-done })
			go func() {
				defer close(done)
				for i := range writes {
					cmd := n.lab.Command(t.Context(), test.command[0], test.command[1:]...)
					cmd.Stdin = strings.NewReader(test.rules(i + 1))
					if out, err := cmd.CombinedOutput(); err != nil {
						if t.Context().Err() == nil { // else it was killed with the test
							t.Errorf("%v: %s", err, out)
						}
						return
					}
				}
			}()
			looks, unsure := 0, 0
			for writing := true; writing; looks++ {
				select {
				case <-done:
					writing = false
				default:
				}
				addrs := []netip.AddrPort{netip.AddrPortFrom(benchAddr(0), 80), netip.AddrPortFrom(benchAddr(99), 80)}
				p := n.detect(addrs[:looks%2*2]...) // all rules, and two addresses
				unsure = 0
				for _, addr := range addrs {
					if served, sure := p.Serves(addr); !sure {
						unsure++
					} else if !served {
						t.Fatalf("sure that %s is not served, in\n%s", addr, p)
					}
				}
			}
			if unsure > 0 {
				t.Errorf("not sure after the last write, in look %d", looks)
			}
		})
	}
}

func TestDetectWithoutRights(t *testing.T) {
	n := newNode(t)
	n.run(ip4Rules, "iptables-legacy-restore")
	var p Presence
	err := n.lab.Do(func() error {
		return withoutCapabilities(func() (err error) {
			p, err = Detect(t.Context(), Config{AnyFrontend: true})
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"nftables ip", "iptables-nft ip6", "iptables-legacy ip"} {
		if e := find(t, p, source); e.Found != Unknown || !strings.Contains(e.Detail, "CAP_NET_ADMIN") {
			t.Errorf("%s: %s: %s", source, e.Found, e.Detail)
		}
	}
	if p.State != Unclear || p.Running != No || p.Rules != Unknown {
		t.Errorf("got %s", p)
	}
	checkServed(t, p, "10.96.0.1:443 perhaps no", "[fd00:96::1]:443 perhaps no")
}

func TestDetectEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p, err := Detect(ctx, Config{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if p.State == Absent {
		t.Error("says that kube-proxy is absent, without a look")
	}
}

func TestPresenceText(t *testing.T) {
	n := newNode(t)
	n.run(ip4Rules, "iptables-nft-restore")
	p := n.detect()
	if got, want := p.Summary(), "kube-proxy does not run, but left rules in iptables-nft ip"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var decoded struct {
		State, Running, Rules string
		Evidence              []struct{ Source, Found, Detail string }
	}
	if err := json.Unmarshal(data, &decoded); err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, e := range decoded.Evidence {
		sources = append(sources, e.Source)
	}
	want := []string{"process", "healthz", "nftables ip", "iptables-nft ip", "nftables ip6", "iptables-nft ip6",
		"iptables-legacy ip", "iptables-legacy ip6", "kube-ipvs0", "ipvs"}
	if decoded.State != "left-over" || decoded.Running != "no" || decoded.Rules != "yes" || !slices.Equal(sources, want) {
		t.Errorf("JSON is %s", data)
	}
}
