package main

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// uplinks are programs with the names of the packet path's, which leave all packets alone.
type uplinks struct{ attach.ByName }

func (u uplinks) Hooks() []bpf.Hook { return u.AllHooks() }

func (u uplinks) Load() (map[string]*ebpf.Program, error) {
	progs := map[string]*ebpf.Program{}
	for _, h := range u.AllHooks() {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: h.Program(), Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, -1), asm.Return(),
		}})
		if err != nil {
			return nil, err
		}
		progs[h.Name] = p
	}
	return progs, nil
}

// uplinked has the packet path attached to the node's loopback, as a runtime leaves it.
func (n node) uplinked(tcx bool) attach.Config {
	n.Helper()
	cfg := attach.Config{Pins: n.pins(), Target: attach.Device{Name: "lo", Index: 1, TCX: tcx}, Programs: uplinks{bpf.UplinkHooks()}}
	n.inNetns(func() error {
		j, err := instance.OpenJournal(n.RunDir, false)
		if err != nil {
			return err
		}
		cfg.Journal = j
		a, err := attach.Attach(cfg)
		if err != nil {
			return err
		}
		return errors.Join(a.Commit(), a.Close())
	})
	return cfg
}

func (n node) inNetns(do func() error) {
	n.Helper()
	if err := n.Do(do); err != nil {
		n.Fatal(err)
	}
}

func (n node) wantNoUplinks(cfg attach.Config) {
	n.Helper()
	n.inNetns(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(lo)
		for _, q := range qdiscs {
			if q.Type() == "clsact" { // with which its filters would go
				n.Error("the clsact qdisc is left")
			}
		}
		if err != nil || !cfg.Target.(attach.Device).TCX {
			return err
		}
		for _, h := range bpf.UplinkHooks() {
			found, err := link.QueryPrograms(link.QueryOptions{Target: lo.Attrs().Index, Attach: h.Attach})
			if err != nil || len(found.Programs) > 0 {
				n.Errorf("at %s: %+v, %v", h.Name, found, err)
			}
		}
		return nil
	})
}

// TestUninstallAtDevices: without a runtime, by what is pinned and by the journal alone.
func TestUninstallAtDevices(t *testing.T) {
	for _, tcx := range []bool{true, false} {
		for _, lost := range []string{"nothing", "the pins"} {
			t.Run(fmt.Sprintf("tcx %t, %s lost", tcx, lost), func(t *testing.T) {
				if tcx {
					lab.NeedsLinux(t, 6, 6, "tcx")
				}
				n := newNode(t, lab.WithoutBPFFS())
				n.serving()
				n.without(n.StateDir, n.RunDir)
				before := n.traces()
				n.init()
				cfg := n.uplinked(tcx)
				r := n.run("uninstall", "--force", "--dry-run").exits(0).says("from_uplink", "to_uplink", "device lo")
				if !tcx {
					r.says("clsact of device lo")
				}
				if lost != "nothing" {
					for _, h := range bpf.UplinkHooks() {
						os.Remove(fmt.Sprintf("%s/%s_1", n.pins().Progs(), h.Name))
						if !tcx { // else it is detached with its pin
							continue
						}
						os.Remove(fmt.Sprintf("%s/%s_1", n.pins().Links(), h.Name))
					}
				}
				n.run("uninstall", "--force").exits(0)
				n.wantNoUplinks(cfg)
				if diff := cmp.Diff(before, n.traces()); diff != "" {
					t.Errorf("traces (- before, + after):\n%s", diff)
				}
				n.run("uninstall").exits(0).says("nothing of firsthop's is here")
			})
		}
	}
}
