package kubeproxy

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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

func TestRulesAreFoundAndRead(t *testing.T) {
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
		})
	}
}

func TestALookChangesNothing(t *testing.T) {
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

func TestProcess(t *testing.T) {
	t.Run("runs without rules yet", func(t *testing.T) {
		n := newNode(t)
		pid := n.startProcess(n.lab, "kube-proxy").Process.Pid
		p := n.detect()
		if p.State != Running || p.Rules != No || len(p.Processes) != 1 || p.Processes[0].PID != pid || p.Processes[0].Embedded {
			t.Errorf("got %+v", p)
		}
	})
	t.Run("runs with rules, then ends and leaves them", func(t *testing.T) {
		n := newNode(t)
		n.run(ip4Rules, "iptables-nft-restore")
		process := n.startProcess(n.lab, "kube-proxy")
		p := n.detect()
		if p.State != Running || p.Rules != Yes {
			t.Errorf("got %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
		process.becomeZombie(t)
		p = n.detect()
		if p.State != LeftOver {
			t.Errorf("when it is a zombie: %s", p)
		}
		process.end()
		p = n.detect()
		if p.State != LeftOver {
			t.Errorf("when it is gone: %s", p)
		}
		checkServed(t, p, "10.96.0.1:443 yes")
	})
	t.Run("runs in another network namespace", func(t *testing.T) {
		n := newNode(t)
		n.startProcess(newNode(t).lab, "kube-proxy")
		p := n.detect()
		if p.State != Absent || len(p.Processes) != 0 {
			t.Errorf("got %s", p)
		}
		if detail := find(t, p, SourceProcess).Detail; !strings.Contains(detail, "other network namespaces: kube-proxy, pid") {
			t.Errorf("does not name it: %s", detail)
		}
	})
}

func TestEmbedded(t *testing.T) {
	for _, test := range []struct {
		name    string
		comm    string
		args    []string
		config  string // k3s's configuration file
		rules   bool
		healthz bool
		want    State
	}{
		{"k3s without rules has no kube-proxy", "k3s-server", nil, "", false, false, Absent},
		{"k3s with rules and the health port has", "k3s-server", nil, "", true, true, Running},
		{"k3s with rules and no health port may have", "k3s-agent", nil, "", true, false, Unclear},
		{"k3s with the flag has not", "k3s-server", []string{"server", "--disable-kube-proxy"}, "", true, true, LeftOver},
		{"k3s with the line in its configuration has not", "k3s-server", nil, "token: x\ndisable-kube-proxy: true # firsthop\n", true, true, LeftOver},
		{"k3s with the line set to false has", "k3s-server", nil, "disable-kube-proxy: false\n", true, true, Running},
		{"microk8s with rules and the health port has", "kubelite", nil, "", true, true, Running},
		{"hyperkube as kube-proxy is kube-proxy", "hyperkube", []string{"kube-proxy"}, "", false, false, Running},
		{"hyperkube as the kubelet is not", "hyperkube", []string{"kubelet"}, "", true, true, LeftOver},
		{"an unrelated process is not", "kube-proxy-x", nil, "", true, true, LeftOver},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			d := newDetector(Config{Root: t.TempDir()})
			if test.config != "" {
				mustWrite(t, filepath.Join(d.root, "etc/rancher/k3s/config.yaml"), test.config)
			}
			if test.rules {
				n.run(ip4Rules, "iptables-nft-restore")
			}
			if test.healthz {
				n.serveHealthz("HTTP/1.1 200 OK\r\n\r\n{}")
			}
			if test.comm == "hyperkube" {
				// Its first argument says what it is, so it can't be the shell's.
				n.startHyperkube(test.args[0])
			} else {
				n.startProcess(n.lab, test.comm, test.args...)
			}
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
}

// startHyperkube starts a process whose arguments are hyperkube's: the shell
// reads a script of that name in its directory.
func (n node) startHyperkube(part string) {
	n.Helper()
	dir := n.TempDir()
	mustWrite(n.T, filepath.Join(dir, part), "echo; read line\n")
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hyperkube"), shell, 0o755); err != nil {
		n.Fatal(err)
	}
	cmd := n.lab.Command(n.Context(), filepath.Join(dir, "hyperkube"), part)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(process{Cmd: cmd, stdin: stdin}.end)
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		n.Fatal(err)
	}
}

func TestHealthz(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer string // "" for a port that takes connections and says nothing, "-" for none
		want   Answer
		detail string
	}{
		{"healthy", "HTTP/1.1 200 OK\r\n\r\n{}", Yes, "127.0.0.1:10256 answers 200 OK"},
		{"unhealthy answers too", "HTTP/1.1 503 Service Unavailable\r\n\r\n", Yes, "answers 503"},
		{"something else", "SSH-2.0-OpenSSH\r\n", Unknown, "no HTTP answer"},
		{"silent", "", Unknown, "timeout"},
		{"nothing there", "-", No, "nothing listens"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.startProcess(n.lab, "kube-proxy")
			if test.answer != "-" {
				n.serveHealthz(test.answer)
			}
			start := time.Now()
			p := n.detect()
			if took := time.Since(start); took > 5*healthTimeout {
				t.Errorf("took %v", took)
			}
			if e := find(t, p, SourceHealthz); e.Found != test.want || !strings.Contains(e.Detail, test.detail) {
				t.Errorf("got %s: %s; want %s: %s", e.Found, e.Detail, test.want, test.detail)
			}
			if p.State != Running {
				t.Errorf("state %q: the port decides nothing for a kube-proxy that runs", p.State)
			}
		})
	}
}

// serveHealthz listens as kube-proxy does and gives every connection an
// answer, or none.
func (n node) serveHealthz(answer string) {
	n.Helper()
	ln, err := n.lab.Listen("tcp", "127.0.0.1:10256")
	if err != nil {
		n.Fatal(err)
	}
	done := make(chan struct{})
	n.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Write([]byte(answer)); err != nil {
				n.Error(err)
			}
			_, _ = conn.Read(make([]byte, 1024))
			if answer == "" {
				_, _ = conn.Read(make([]byte, 1)) // until the other side gives up
			}
			conn.Close()
		}
	}()
}

func TestWithoutRightsItCouldNotTell(t *testing.T) {
	n := newNode(t)
	n.run(ip4Rules, "iptables-legacy-restore")
	var p Presence
	err := n.lab.Do(func() error {
		return withoutCapabilities(func() (err error) {
			p, err = Detect(t.Context(), Config{})
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

func TestAContainersProcessesProveNothing(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct {
		name  string
		procs map[string]string // pid -> name
		want  State
	}{
		{"only the container's own", map[string]string{"1": "firsthop", "7": "sh"}, Unclear},
		{"the kernel's threads too", map[string]string{"1": "anything", "2": "kthreadd"}, Absent},
		{"a node that is a container", map[string]string{"1": "systemd"}, Absent},
		{"a node without systemd", map[string]string{"1": "tini", "30": "kubelet"}, Absent},
	} {
		t.Run(test.name, func(t *testing.T) {
			proc := t.TempDir()
			for pid, comm := range test.procs {
				mustWrite(t, filepath.Join(proc, pid, "comm"), comm+"\n")
			}
			d := newDetector(Config{Proc: proc})
			if p := n.detectWith(d); p.State != test.want {
				t.Errorf("state %q, want %q\n%s", p.State, test.want, p)
			}
		})
	}
	t.Run("no /proc", func(t *testing.T) {
		d := newDetector(Config{Proc: "/nonexistent"})
		if p := n.detectWith(d); p.State != Unclear {
			t.Errorf("got %s", p)
		}
	})
}

func TestEndedContext(t *testing.T) {
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

func TestText(t *testing.T) {
	n := newNode(t)
	n.run(ip4Rules, "iptables-nft-restore")
	p := n.detect()
	for _, want := range []string{
		"kube-proxy does not run, but left rules in iptables-nft ip\n",
		"  iptables-nft ip      yes  nat KUBE-SERVICES (1 TCP service addresses)\n",
		"  kube-ipvs0           no   none\n",
	} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("no line %q in\n%s", want, p)
		}
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

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
