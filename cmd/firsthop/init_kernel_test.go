package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// startImpostor starts a process of root's named kube-proxy in the lab's network namespace, which serves nothing: a copy
// of the shell that waits for its input to end. It returns what ends it.
func (n node) startImpostor() (end func()) {
	n.Helper()
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		n.Fatal(err)
	}
	path := filepath.Join(n.Dir, "kube-proxy")
	if err := os.WriteFile(path, shell, 0o755); err != nil {
		n.Fatal(err)
	}
	cmd := n.Command(n.Context(), path, "-c", "echo; read line")
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
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil { // now it is what it is named
		n.Fatal(err)
	}
	return func() {
		stdin.Close()
		_ = cmd.Wait()
	}
}

// serveByRules writes the rules that kube-proxy has in its nftables mode for TCP Services, cut down to what says that
// they are served. It returns what removes them.
func (n node) serveByRules(services ...string) (remove func()) {
	n.Helper()
	var script strings.Builder
	for _, fam := range []string{"ip", "ip6"} {
		addr := map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[fam]
		fmt.Fprintf(&script, "add table %s kube-proxy\nadd chain %s kube-proxy service-x\nadd map %s kube-proxy service-ips { type %s . inet_proto . inet_service : verdict ; }\n", fam, fam, fam, addr)
		for _, s := range services {
			if a := netip.MustParseAddrPort(s); a.Addr().Is4() == (fam == "ip") {
				fmt.Fprintf(&script, "add element %s kube-proxy service-ips { %s . tcp . %d : goto service-x }\n", fam, a.Addr(), a.Port())
			}
		}
	}
	n.nft(script.String())
	return func() { n.nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy\n") }
}

func TestInitOnAnUnsupportedKernelFails(t *testing.T) {
	for _, feature := range []string{"connect4", "recvmsg6", "spin-lock", "map-hash", "bpf-syscall", "cgroup2"} {
		t.Run(feature, func(t *testing.T) {
			n := newNode(t, lab.WithoutBPFFS())
			n.serving()
			before := n.state()
			n.run(initArgs("--forbid-feature", feature)...).exits(bootstrap.ExitKernel).says(feature, "kube-proxy")
			n.stateUnchanged(before)
			n.run(initArgs("--forbid-feature", feature, "--dry-run")...).exits(bootstrap.ExitKernel)
			n.run(initArgs("--forbid-feature", feature, "--best-effort")...).exits(0).says("failed at kernel")
			n.run("check", "--forbid-feature", feature).exits(bootstrap.ExitKernel).says(feature)
			n.stateUnchanged(before)
		})
	}
}

// TestInitLeavesAnUnsupportedKernelToKubeProxy: where kube-proxy's rules serve the API service, the node stays on standard
// networking. A process of that name is no kube-proxy.
func TestInitLeavesAnUnsupportedKernelToKubeProxy(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	before := n.state()
	line := initArgs("--forbid-feature", "connect4")
	defer n.startImpostor()()
	n.run(line...).exits(bootstrap.ExitKernel).says("connect4", "no rules serve")
	removePart := n.serveByRules(vip4)
	n.run(line...).exits(bootstrap.ExitKernel).says("no rules serve " + vip6)
	removePart()
	remove := n.serveByRules(vip4, vip6)
	r := n.run(append(line, "-o", "json")...).exits(0).report()
	if r.Result != bootstrap.Skipped || len(r.Hooks) != 0 {
		t.Errorf("result %s, hooks %v; want it skipped", r.Result, r.Hooks)
	}
	for _, s := range r.Steps {
		if want := s.Step == "settings" || s.Step == "lock"; (s.Result == bootstrap.OK) != want {
			t.Errorf("step %s is %s: %s", s.Step, s.Result, s.Reason)
		}
	}
	n.run(line...).exits(0).says("kube-proxy", "connect4", "nothing was attached")
	n.stateUnchanged(before)
	remove()
	n.run(line...).exits(bootstrap.ExitKernel)
	n.stateUnchanged(before)
}

// At a boot, kube-proxy can't run yet where it is a pod: that the kubelet has it is enough.
func TestInitLeavesAnUnsupportedKernelToTheKubeProxyToCome(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib/kubelet/pods/0815/containers/kube-proxy"), 0o755); err != nil {
		t.Fatal(err)
	}
	line := initArgs("--forbid-feature", "connect4", "--root", root)
	n.run(append(line, "--boot")...).exits(0).says("0815", "connect4", "nothing was attached")
	n.run(line...).exits(bootstrap.ExitKernel)
	n.run(initArgs("--forbid-feature", "connect4", "--boot")...).exits(bootstrap.ExitKernel)
}

// TestInitOnEachRung: what a kernel may lack costs what the documentation says, and no more.
func TestInitOnEachRung(t *testing.T) {
	for _, tc := range []struct {
		without string
		peer    string // what getpeername says of a connection to the VIP
		refused string // a connect to an unserved port of the VIP
	}{
		{"", vip4, "connect ECONNREFUSED"},
		{"cgroup-link", vip4, "connect ECONNREFUSED"},
		{"batch", vip4, "connect ECONNREFUSED"},
		{"getpeername", server4, "connect ECONNREFUSED"},
		{"set-retval", vip4, "connect EPERM"},
		{"cgroup-link,batch,getpeername,set-retval,netns-cookie", server4, "connect EPERM"},
	} {
		t.Run("without "+tc.without, func(t *testing.T) {
			n := newNode(t)
			n.echo("tcp", "b4", server4)
			n.echo("tcp", "b6", server6)
			n.echo("udp", "d4", "127.0.0.1:5353")
			line := []string{"--extra-service", extra4}
			if tc.without != "" {
				line = append(line, "--forbid-feature", tc.without)
			}
			n.init(line...)
			p := clients.At(client)
			if e := p.Run(t, n.Lab, clients.TCP, vip4, "x")[0]; e.Server() != "b4" || e.Peer != tc.peer {
				t.Errorf("TCP: %+v, want the peer %s", e, tc.peer)
			}
			if e := p.Run(t, n.Lab, clients.UDPUnconnected, dns4, "x")[0]; e.Server() != "d4" || e.From != dns4 {
				t.Errorf("UDP: %+v", e)
			}
			if e := p.Run(t, n.Lab, clients.TCP, "10.96.0.1:444", "x")[0]; e.Error != tc.refused {
				t.Errorf("an unserved port: %q, want %q", e.Error, tc.refused)
			}
			state := n.state()
			n.init(line...)
			n.stateUnchanged(state)
			n.run("uninstall", "--force").exits(0)
			if got := n.attached(); len(got) > 0 {
				t.Errorf("still attached: %q", got)
			}
			if _, err := os.Stat(bpf.PinsBelow(n.BPFFS).Dir); err == nil {
				t.Error("pins are left")
			}
		})
	}
}
