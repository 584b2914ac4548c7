package main

import (
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/clients"
)

// TestInitWithChangedEndpointsFailsNoConnect lets 64 clients connect in a loop while the endpoints change as fast as init can:
// {A, B}, {B, C}, and back.
func TestInitWithChangedEndpointsFailsNoConnect(t *testing.T) {
	n := newNode(t)
	const a, b, c = server4, "127.0.0.2:6443", "127.0.0.3:6443"
	for _, addr := range []string{a, b, c, server6} {
		n.echo("tcp", addr, addr)
	}
	lists := []string{a + "," + b + "," + server6, b + "," + c + "," + server6}
	n.init("--endpoints", lists[0])
	hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 64, Do: clients.Echo})
	const least = 10 // on a machine that is busy with other things, too
	end := time.Now().Add(4 * time.Second)
	changes := 0
	for ; changes < least || time.Now().Before(end); changes++ {
		r := n.init("--endpoints", lists[1-changes%2])
		if r.Services[0].Change != "changed" {
			t.Fatalf("turn %d: %+v", changes, r.Services[0])
		}
	}
	r := hammer.Stop()
	checkHammered(t, vip4, r, 1000)
	if len(r.Servers) != 3 {
		t.Errorf("answered by %v in %d changes; want three servers", r.Servers, changes)
	}
	if n.table().Generation < uint64(changes) {
		t.Errorf("generation %d after %d changes", n.table().Generation, changes)
	}
	if sets := len(n.table().Sets); sets != 2 {
		t.Errorf("%d sets of backends are in the table, want 2", sets)
	}
}

// TestInitWithAnotherAttachmentFailsNoConnect goes up and down between bpf_link and PROG_ATTACH under load. What is attached by a link and
// current is left alone also where links are forbidden, so the way down needs other programs: those without UDP.
func TestInitWithAnotherAttachmentFailsNoConnect(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	n.init()
	hammer := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 8, Do: clients.Echo})
	for turn := range 10 {
		by, hooks, line := attach.ByProg, 4, []string{"--udp=false", "--forbid-feature", "cgroup-link"}
		if turn%2 == 1 {
			by, hooks, line = attach.ByLink, 8, nil
		}
		r := n.init(line...)
		if len(r.Hooks) != hooks {
			t.Fatalf("turn %d: %d hooks, want %d", turn, len(r.Hooks), hooks)
		}
		for _, h := range r.Hooks {
			if h.By != by || h.Change == attach.Kept {
				t.Fatalf("turn %d: %s %s by %s, want it by %s", turn, h.Hook, h.Change, h.By, by)
			}
		}
		if got := n.attached(); len(got) != hooks {
			t.Fatalf("turn %d: attached are %q, want %d", turn, got, hooks)
		}
		n.run("status").exits(0).says(string(by))
	}
	n.checkOneOfEach()
	checkHammered(t, vip4, hammer.Stop(), 100)
}
