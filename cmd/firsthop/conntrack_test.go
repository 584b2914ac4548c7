package main

import (
	"fmt"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
)

// A setting of the kernel that a runtime has changed is listed, and an uninstall puts it back, unless somebody has set
// it since.
func TestUninstallRestoresKernelSettings(t *testing.T) {
	const closeWait, udp = "net/netfilter/nf_conntrack_tcp_timeout_close_wait", "net/netfilter/nf_conntrack_udp_timeout"
	at := sysctl.Settings{Proc: "/proc"}
	if !at.ConntrackLoaded() {
		t.Skip("needs netfilter's connection tracking: modprobe nf_conntrack")
	}
	n := newNode(t)
	n.serving()
	n.init()
	j, err := instance.OpenJournal(n.RunDir, false)
	if err != nil {
		t.Fatal(err)
	}
	err = n.Do(func() error {
		for _, s := range []sysctl.Setting{{Name: closeWait, Value: 3600, Default: 60}, {Name: udp, Value: 77, Given: true}} {
			if outcome, _, err := at.Apply(j, s); err != nil || outcome != sysctl.Changed {
				return fmt.Errorf("%s: %s, %w", s.Name, outcome, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Sysctl("net.netfilter.nf_conntrack_udp_timeout", "99"); err != nil {
		t.Fatal(err)
	}
	const changed = "net.netfilter.nf_conntrack_tcp_timeout_close_wait = 3600 (before: 60)"
	n.run("status").says("setting", changed, "nf_conntrack_udp_timeout = 99, set by somebody after firsthop")
	n.run("doctor").says(changed)
	n.run("uninstall", "--force", "--dry-run").exits(0).says("would remove setting", changed)
	n.run("uninstall", "--force").exits(0).says("removed setting", changed, "left as it is", "set it to 99")
	for name, want := range map[string]uint64{closeWait: 60, udp: 99} {
		var got uint64
		if err := n.Do(func() (err error) { got, err = at.Read(name); return err }); err != nil || got != want {
			t.Errorf("%s is %d after an uninstall, want %d (%v)", name, got, want, err)
		}
	}
	n.run("status").exits(bootstrap.ExitProof)
}
