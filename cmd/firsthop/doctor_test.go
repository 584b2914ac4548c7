package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// doctor examines the node, and returns what was said of each check.
func (n node) doctor(code bootstrap.ExitCode, args ...string) map[string]diagnose.Finding {
	n.Helper()
	var rep diagnose.DoctorReport
	n.run(append([]string{"doctor", "-o", "json"}, args...)...).exits(code).decode(&rep)
	out := map[string]diagnose.Finding{}
	for _, g := range rep.Findings {
		if g.Sentence == "" || (g.Grade == diagnose.OK) != (g.Remedy == "") {
			n.Errorf("check %s: %+v: want a sentence, and a remedy where one is needed", g.Check, g)
		}
		out[g.Check] = g
	}
	return out
}

// edit changes the table behind everybody's back.
func (n node) edit(change func(maps *bpf.Maps) error) {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), false)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	if err := change(maps); err != nil {
		n.Fatal(err)
	}
}

// install is an init that saves the addresses, as on a node.
func (n node) install(more ...string) {
	n.Helper()
	n.run(append([]string{"init", "--service-ips", vips, "--endpoints", servers}, more...)...).exits(0)
}

// at makes another cgroup that of this node's instance. The lab, which ends later, gets back its own.
func (n node) at(cgroup string) {
	own := n.Cgroup
	n.Cleanup(func() { n.Lab.Cgroup = own })
	n.Lab.Cgroup = cgroup
}

func TestDoctorOnAHealthyNode(t *testing.T) {
	n := newNode(t)
	if err := n.AddAddr("192.0.2.11/32", "2001:db8::11/128"); err != nil {
		t.Fatal(err)
	}
	const at = "192.0.2.11:6443" // not on loopback, where no pod reaches it
	n.serve("one", at, "[2001:db8::11]:6443")
	n.run("init", "--service-ips", vips, "--endpoints", at+",[2001:db8::11]:6443").exits(0)
	before := n.snapshot()
	for check, g := range n.doctor(0) {
		if g.Grade != diagnose.OK {
			t.Errorf("%s: %+v", check, g)
		}
	}
	n.unchanged(before)
	n.run("doctor").exits(0).says("checks: 0 failed, 0 with a warning", vip4+" answered by "+at, "the API service has 2 backends, and all answer")
	index := n.put(service("tcp/10.96.0.20:80", "10.0.0.5:8080"))[0]
	n.asRuntime(synced(1), admin.Service{Index: index, Namespace: "default", Name: "web", Proto: "tcp", Family: "IPv4"})
	if g := n.doctor(0)["runtime"]; g.Grade != diagnose.OK {
		t.Errorf("%+v", g)
	}
}

func TestDoctorWarnsOfServersOnLoopback(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.install()
	if g := n.doctor(0)["backends"]; g.Grade != diagnose.Warn || !strings.Contains(g.Sentence, server4+", "+server6+", which pods can't reach") {
		t.Errorf("%+v", g)
	}
}

// TestDoctorEveryCheckCanFail breaks a node in one way after the other: each is found, by the check that is about
// it, and with a remedy.
func TestDoctorEveryCheckCanFail(t *testing.T) {
	const warn, fail = diagnose.Warn, diagnose.Fail
	var api *standin.APIServer // of the present node
	write := func(path, text string) func(n *node) {
		return func(n *node) {
			if err := os.WriteFile(strings.ReplaceAll(path, "RUN", n.RunDir), []byte(text), 0o600); err != nil {
				n.Fatal(err)
			}
		}
	}
	put := func(name bpf.MapName, key, value any) func(n *node) {
		return func(n *node) { n.edit(func(maps *bpf.Maps) error { return maps.Map(name).Put(key, value) }) }
	}
	for _, tc := range []struct {
		name   string
		make   func(n *node)
		args   []string
		check  string
		health diagnose.Grade
		says   string
		remedy string
	}{
		{"a kernel that lacks something", func(*node) {}, []string{"--forbid-feature", "set-retval"}, "hooks", warn, "another version", "firsthop init"},
		{"a kernel that is not supported", func(*node) {}, []string{"--forbid-feature", "cgroup-attach"}, "kernel", fail, "", "leave the node to kube-proxy"},
		{"no bpffs", func(n *node) {
			if err := unix.Unmount(n.BPFFS, unix.MNT_DETACH); err != nil {
				n.Fatal(err)
			}
		}, nil, "bpffs", fail, "not mounted", "firsthop init"},
		{"a bpffs over the bpffs", func(n *node) {
			if err := unix.Mount("over", n.BPFFS, "bpf", 0, "mode=0700"); err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { unix.Unmount(n.BPFFS, 0) })
		}, nil, "bpffs", fail, "hides", "umount"},
		{"a bpffs that is open to others", func(n *node) {
			if err := os.Chmod(n.BPFFS, 0o755); err != nil {
				n.Fatal(err)
			}
		}, nil, "bpffs", warn, "mode 0755", "chmod 0700"},
		{"no cgroup", func(n *node) { n.at(n.Cgroup + "/gone") }, nil, "cgroup", fail, "", "firsthop init"},
		{"a foreign map in our directory", func(n *node) { n.pinForeign(n.pins().Maps() + "/somebodys") }, nil, "pins", warn, "not ours", "move away"},
		{"a foreign map at the place of a link", func(n *node) {
			n.without(n.pins().Links() + "/connect4")
			n.pinForeign(n.pins().Links() + "/connect4")
		}, nil, "pins", fail, "not firsthop's", "move away"},
		{"a directory of ours that is open to others", func(n *node) {
			if err := os.Chmod(n.pins().Dir, 0o755); err != nil {
				n.Fatal(err)
			}
		}, nil, "pins", warn, "mode 0755", "chmod 0700"},
		{"a pin on its way to its place", func(n *node) { n.pinForeign(n.pins().Maps() + "/backend_v1_new") }, nil, "pins", warn, "was killed", "firsthop init"},
		{"no pins at all", func(n *node) { n.run("uninstall", "--force").exits(0) }, nil, "pins", fail, "nothing is pinned", "firsthop init"},
		{"a map's pin removed", func(n *node) { n.without(n.pins().Map(bpf.MapBackend)) }, nil, "layout", fail, "backend_v1", "firsthop init"},
		{"a map's pin that a former version didn't have", func(n *node) { n.without(n.pins().Map(bpf.MapAffinity)) }, nil, "layout", warn, "affinity_v1", "restart of the runtime"},
		{"a pin of an older layout", func(n *node) { n.pinForeign(n.pins().Maps() + "/frontend_v0") }, nil, "layout", warn, "another layout", "rm them"},
		{"a table of a newer layout", put(bpf.MapMeta, uint32(0), bpf.Meta{ABI: bpf.LayoutVersion + 1, Owner: bpf.MetaOwner}), nil, "layout", fail, "layout 2", "newer firsthop"},
		{"a table of another owner", put(bpf.MapMeta, uint32(0), bpf.Meta{ABI: bpf.LayoutVersion, Owner: 0xbad}), nil, "layout", fail, "0xbad", "move away"},
		{"a damaged list of changes", write("RUN/"+instance.JournalName, "{"), nil, "changes", fail, "damaged", "firsthop init"},
		{"programs that were never proven", func(n *node) {
			write("RUN/"+instance.JournalName, `[{"kind":"unproven","target":"`+n.pins().Dir+`","time":"2026-01-01T00:00:00Z"}]`)(n)
		}, nil, "changes", fail, "never proven", "firsthop init"},
		{"a link's pin removed", func(n *node) {
			n.without(n.pins().Links() + "/recvmsg6")
			lab.Await(n.T, "a link without a pin to detach", func() bool { return len(n.attached()) == len(bpf.Hooks())-1 })
		}, nil, "hooks", fail, "recvmsg6", "firsthop init"},
		{"another cgroup", func(n *node) {
			cgroup, err := n.NewCgroup("other")
			if err != nil {
				n.Fatal(err)
			}
			n.at(cgroup)
		}, nil, "hooks", fail, "not attached to", "firsthop init"},
		{"another firsthop", func(n *node) {
			dir := filepath.Join(n.Dir, "other")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				n.Fatal(err)
			}
			if err := unix.Mount("other", dir, "bpf", 0, "mode=0700"); err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { unix.Unmount(dir, 0) })
			seeded, err := natinit.Seed(natinit.SeedConfig{Pins: bpf.PinsBelow(dir)})
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { seeded.Maps.Close() })
			a, err := attach.Attach(attach.Config{Pins: bpf.PinsBelow(dir), Target: attach.Cgroup{Path: n.Cgroup}, Programs: attach.Balancer{Balancer: bpf.Balancer{UDP: true}, Maps: seeded.Maps}})
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() {
				natinit.Remove(attach.Config{Pins: bpf.PinsBelow(dir), Target: attach.Cgroup{Path: n.Cgroup}})
				a.Close()
			})
		}, nil, "others", fail, "another firsthop serves this cgroup", "--bpffs"},
		{"a program of somebody else beside ours", func(n *node) { n.attachForeign("connect4", allowMulti) }, nil, "others", warn, "edr_agent", "ask its owner"},
		{"a program of somebody else in the place of ours", func(n *node) {
			n.run("uninstall", "--force").exits(0)
			n.attachForeign("connect4", exclusive)
		}, nil, "others", fail, "keeps ours out", "BPF_F_ALLOW_MULTI"},
		{"a backend removed behind our back", func(n *node) {
			state := n.table()
			for id, set := range state.Sets {
				for slot := range set {
					n.edit(func(maps *bpf.Maps) error {
						return maps.Map(bpf.MapBackend).Delete(bpf.BackendKey{Set: id, Slot: slot})
					})
					return
				}
			}
		}, nil, "table", fail, "lead nowhere", "restart the runtime"},
		{"a frontend without a Service", put(bpf.MapFrontend, bpf.FrontendKeyOf(netip.MustParseAddrPort("10.96.0.99:80"), bpf.TCP), bpf.Frontend{Index: 1 << 30}), nil, "table", fail, "lead nowhere", "restart the runtime"},
		{"a set that nothing leads to", put(bpf.MapBackend, bpf.BackendKey{Set: 1 << 20}, bpf.Backend{ID: bpf.BackendMember}), nil, "table", warn, "left over", "restart the runtime"},
		{"a table that is nearly full", func(n *node) {
			n.run("uninstall", "--force").exits(0)
			n.install("--max-frontends", "1024", "--max-backends", "1024", "--max-services", "2048")
			svc := service("tcp/10.96.1.0:1", "10.0.0.5:80")
			for port := uint16(2); len(svc.Frontends) < 950; port++ {
				svc.Frontends = append(svc.Frontends, bpf.FrontendKeyOf(netip.AddrPortFrom(netip.MustParseAddr("10.96.1.0"), port), bpf.TCP))
			}
			n.put(svc)
		}, nil, "room", warn, "frontends", "--max-frontends"},
		{"a map of sockets that is nearly full", func(n *node) {
			n.edit(func(maps *bpf.Maps) error {
				m := maps.Map(bpf.MapUDPSockAffinity)
				for i := range uint64(m.MaxEntries()) * 95 / 100 {
					if err := m.Put(bpf.SockAffinityKey{Cookie: i}, bpf.SockAffinity{}); err != nil {
						return err
					}
				}
				return nil
			})
		}, nil, "sockets", warn, "udp_sock_affinity", "let the runtime run"},
		{"an API service without a backend", func(n *node) {
			for at := range n.table().ServiceStates {
				put(bpf.MapService, at, bpf.ServiceState(0))(n)
			}
		}, nil, "backends", fail, "no backend", "firsthop init"},
		{"no API server that answers", func(*node) { api.Close() }, nil, "backends", fail, "has 2 backends, of which none answers", "firsthop discover"},
		{"one API server that doesn't answer", func(n *node) {
			api.Close()
			n.serve("two", server4)
		}, nil, "backends", warn, "1 of the API service's 2", "take it out"},
		{"connections that are led to dead API servers", func(*node) { api.Close() }, nil, "proof", warn, "don't answer", "backends"},
		{"nothing attached", func(n *node) {
			for _, h := range bpf.Hooks() {
				n.without(n.pins().Links() + "/" + h.Name)
			}
			lab.Await(n.T, "links without pins to detach", func() bool { return len(n.attached()) == 0 })
		}, nil, "proof", fail, "not effective", "firsthop init"},
		{"no init on record", func(n *node) { n.without(filepath.Join(n.RunDir, instance.StatusName)) }, nil, "init", warn, "no init is on record", "firsthop init"},
		{"an init that failed", func(n *node) {
			n.run(initArgs("--endpoints", "127.0.0.1:1,[::1]:1", "--timeout", "50ms")...).exits(bootstrap.ExitProof)
		}, nil, "init", warn, "failed at", "firsthop init"},
		{"Services of a runtime that is gone", func(n *node) { n.put(service("tcp/10.96.0.20:80", "10.0.0.5:80")) }, nil, "runtime", warn, "changes are not followed", "systemctl restart"},
		{"a runtime that hangs", func(n *node) {
			l, err := net.Listen("unix", filepath.Join(n.RunDir, instance.RuntimeSocketName))
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(func() { l.Close() })
		}, nil, "runtime", fail, "doesn't answer", "systemctl restart"},
		{"a runtime without a socket", func(n *node) {
			unlock, err := instance.LockRuntime(n.RunDir)
			if err != nil {
				n.Fatal(err)
			}
			n.Cleanup(unlock)
		}, nil, "runtime", warn, "has no socket", "systemctl restart"},
		{"a runtime that waits", func(n *node) {
			st := synced(0)
			st.Adopted = false
			n.asRuntime(st)
		}, nil, "runtime", warn, "has not heard all", "log"},
		{"a runtime whose watch fails", func(n *node) {
			st := synced(0)
			st.Watches = map[string]admin.Watch{"services": {LastError: "services is forbidden"}}
			n.asRuntime(st)
		}, nil, "runtime", warn, "services is forbidden", "firsthop discover"},
		{"a runtime that has no room", func(n *node) {
			st := synced(2)
			st.Table.Out = []admin.Out{{Service: "default/web (IPv4)", Reason: "no room"}}
			n.asRuntime(st)
		}, nil, "runtime", warn, "1 Service ports are not", "firsthop nat"},
		{"no saved addresses", func(n *node) { n.without(apiserver.CachePath(n.StateDir)) }, nil, "cache", warn, "is not there", "firsthop init"},
		{"damaged saved addresses", func(n *node) {
			if err := os.WriteFile(apiserver.CachePath(n.StateDir), []byte("{}"), 0o600); err != nil {
				n.Fatal(err)
			}
		}, nil, "cache", fail, "", "rm "},
		{"saved addresses of servers that are not in use", func(n *node) {
			known := &apiserver.Known{Source: "test", ServicesCertainty: apiserver.Given, EndpointsCertainty: apiserver.Given, Services: []netip.AddrPort{netip.MustParseAddrPort(vip4), netip.MustParseAddrPort(vip6)},
				Endpoints: []apiserver.KnownEndpoint{{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:6443")}}, {Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort("[2001:db8::1]:6443")}}}}
			if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: n.StateDir}, known); err != nil {
				n.Fatal(err)
			}
		}, nil, "cache", warn, "none of the saved API servers is in use", "firsthop init"},
		{"old saved addresses beside a runtime", func(n *node) {
			known, err := apiserver.Load(n.StateDir)
			if err != nil {
				n.Fatal(err)
			}
			n.without(apiserver.CachePath(n.StateDir))
			past := func() time.Time { return time.Now().Add(-100 * time.Hour) }
			if _, err := apiserver.Save(apiserver.SaveConfig{StateDir: n.StateDir, Now: past}, known); err != nil {
				n.Fatal(err)
			}
			n.asRuntime(synced(0))
		}, nil, "cache", warn, "are old", "log"},
		{"rules of a kube-proxy that is gone", func(n *node) {
			if out, err := n.Command(n.Context(), "nft", "add table ip kube-proxy").CombinedOutput(); err != nil {
				n.Fatal(err, string(out))
			}
		}, nil, "kube-proxy", warn, "backends of long ago", "--cleanup"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			api = n.serving()
			n.install()
			tc.make(&n)
			var code bootstrap.ExitCode
			if tc.health == fail {
				code = bootstrap.ExitProof
			}
			got := map[string]diagnose.Finding{}
			var rep diagnose.DoctorReport
			r := n.run(append([]string{"doctor", "-o", "json"}, tc.args...)...)
			r.decode(&rep)
			broken := false
			for _, g := range rep.Findings {
				got[g.Check] = g
				broken = broken || g.Grade == diagnose.Fail
			}
			if (r.code == int(bootstrap.ExitProof)) != broken || code != 0 && r.code != int(code) {
				t.Errorf("exit code %d", r.code)
			}
			g := got[tc.check]
			said := g.Sentence + " " + strings.Join(g.Evidence, " ")
			if g.Grade != tc.health || !strings.Contains(said, tc.says) || !strings.Contains(g.Remedy, tc.remedy) || g.Remedy == "" {
				t.Errorf("%s: %+v\nwant %s, %q, remedy %q", tc.check, g, tc.health, tc.says, tc.remedy)
			}
		})
	}
}

// TestDoctorOnANodeOfItsOwn looks where nothing says where anything is: before init, after it, and when what is
// mounted at the usual place is not the true root any more.
func TestDoctorOnANodeOfItsOwn(t *testing.T) {
	n := newNode(t)
	n.serving()
	out, err := n.onMachine(`
		examine() { echo "== $1"; firsthop doctor || echo "exit code $?"; }
		examine before
		firsthop init >/dev/null
		examine after
		mkdir /sys/fs/cgroup/sub
		mount --bind /sys/fs/cgroup/sub /sys/fs/cgroup
		examine covered
		umount /sys/fs/cgroup
		rmdir /sys/fs/cgroup/sub
		firsthop uninstall --force >/dev/null`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	parts := map[string]string{}
	for _, part := range strings.Split(out, "== ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		parts[name] = text
	}
	for _, tc := range []struct {
		when  string
		says  []string
		fails bool
	}{
		{"before", []string{"fail  bpffs  ", "not mounted", "remedy: firsthop init", "is the true root", "fail  layout", "skip  proof       could not look at", "ok    runtime     no runtime runs here"}, true},
		{"after", []string{"is the true root", "ok    proof", "warn  boot", "remedy: firsthop units", "ok    cache", " 0 failed"}, false},
		{"covered", []string{"fail  cgroup", "the true root of the hierarchy is mounted nowhere", "skip  hooks       could not look at"}, true},
	} {
		text := parts[tc.when]
		for _, want := range tc.says {
			if !strings.Contains(text, want) && !strings.Contains(unwrapped(text), want) {
				t.Errorf("%s: doesn't say %q:\n%s", tc.when, want, text)
			}
		}
		if strings.Contains(text, "exit code 6") != tc.fails {
			t.Errorf("%s: fails is not %t:\n%s", tc.when, tc.fails, text)
		}
	}
}
