package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
)

// The flags of BPF_PROG_ATTACH.
const (
	exclusive     = 0
	allowOverride = 1 << 0
	allowMulti    = 1 << 1
)

// foreign is a program of somebody else's at a hook of the lab's cgroup. It forbids connects to port 9.
type foreign struct {
	node
	id   ebpf.ProgramID
	hook bpf.Hook
}

// attachForeign attaches one as another agent on the node would, and detaches it when the test ends.
func (n node) attachForeign(hook string, flags uint32) foreign {
	n.Helper()
	f := foreign{node: n}
	for _, h := range bpf.Hooks() {
		if h.Name == hook {
			f.hook = h
		}
	}
	verdict := asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	if hook == "connect4" || hook == "connect6" {
		const userPort = 24 // in struct bpf_sock_addr
		verdict = asm.Instructions{
			asm.Mov.Imm(asm.R0, 1),
			asm.LoadMem(asm.R2, asm.R1, userPort, asm.Word),
			asm.JNE.Imm(asm.R2, 9<<8, "done"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return().WithSymbol("done"),
		}
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "edr_agent", Type: ebpf.CGroupSockAddr, AttachType: f.hook.Attach, Instructions: verdict, License: "MIT",
	})
	if err != nil {
		n.Fatal(err)
	}
	info, err := prog.Info()
	if err != nil {
		n.Fatal(err)
	}
	f.id, _ = info.ID()
	dir, err := os.Open(n.Cgroup)
	if err != nil {
		n.Fatal(err)
	}
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: prog, Attach: f.hook.Attach, Flags: flags}); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: prog, Attach: f.hook.Attach}); err != nil {
			n.Errorf("detach the foreign program: %v", err)
		}
		dir.Close()
		prog.Close()
	})
	return f
}

// checkWorks wants the program attached, once, and doing what it did.
func (f foreign) checkWorks() {
	f.Helper()
	count := 0
	for _, line := range f.attached() {
		if line == fmt.Sprintf("program %d at %s", f.id, f.hook.Attach) {
			count++
		}
	}
	if count != 1 {
		f.Errorf("the foreign program %d is attached %d times: %q", f.id, count, f.attached())
	}
	if f.hook.Name != "connect4" {
		return
	}
	e := clients.At(client).Run(f.T, f.Lab, clients.TCP, "127.0.0.1:9", "x")[0]
	if e.Error != "connect EPERM" {
		f.Errorf("the foreign program doesn't work: %+v", e)
	}
}

func TestInitKeepsForeignPrograms(t *testing.T) {
	for _, line := range [][]string{nil, {"--forbid-feature", "cgroup-link"}} {
		t.Run(strings.Join(append([]string{"init"}, line...), " "), func(t *testing.T) {
			n := newNode(t)
			n.serving()
			agents := []foreign{n.attachForeign("connect4", allowMulti), n.attachForeign("sendmsg6", allowMulti)}
			check := func() {
				t.Helper()
				for _, f := range agents {
					f.checkWorks()
				}
			}
			check()
			n.init(line...)
			check()
			n.checkServes()
			n.init(line...)
			check()
			n.run("status").exits(0).says(fmt.Sprintf(`%d "edr_agent"`, agents[0].id))
			n.run("check", "--service-ips", vips, "--endpoints", servers).exits(0).says("which they share")
			n.run("check", "--service-ips", vips, "--endpoints", servers, "--verbose").exits(0).says("edr_agent", "which they share")
			n.run("uninstall", "--force").exits(0)
			check()
			if got := n.attached(); len(got) != len(agents) {
				t.Errorf("after an uninstall: %q, want only the foreign ones", got)
			}
		})
	}
}

// TestInitFailsWhereAForeignProgramKeepsItOut: one that lets no other in is named, and nothing of ours is left half done.
func TestInitFailsWhereAForeignProgramKeepsItOut(t *testing.T) {
	for _, tc := range []struct {
		name, hook string
		flags      uint32
		says       string
	}{
		{"OVERRIDE at the last hook", "connect6", allowOverride, "BPF_F_ALLOW_OVERRIDE"},
		{"OVERRIDE at the first hook", "getpeername4", allowOverride, "BPF_F_ALLOW_OVERRIDE"},
		{"exclusive in the middle", "sendmsg4", exclusive, "exclusively"},
		{"exclusive at the last hook", "connect4", exclusive, "exclusively"},
	} {
		for _, line := range [][]string{nil, {"--forbid-feature", "cgroup-link"}} {
			t.Run(strings.Join(append([]string{tc.name}, line...), " "), func(t *testing.T) {
				n := newNode(t)
				n.serving()
				f := n.attachForeign(tc.hook, tc.flags)
				before := n.state()
				// A process that lists programs at this instant holds it too, so this process need not be the first that is named.
				wants := []string{fmt.Sprintf(`program %d "edr_agent"`, f.id), tc.says, "held by pid ", fmt.Sprintf("pid %d (", os.Getpid()), tc.hook}
				for range 2 {
					n.run(initArgs(line...)...).exits(bootstrap.ExitAttach).says(wants...)
					n.stateUnchanged(before)
					f.checkWorks()
				}
				n.run(initArgs(append(line, "--dry-run")...)...).exits(bootstrap.ExitAttach).says(wants...)
				n.run(initArgs(append(line, "--best-effort")...)...).exits(0).says(wants...)
				n.run(append([]string{"check"}, line...)...).exits(bootstrap.ExitAttach).says(wants...)
				n.run("status").exits(bootstrap.ExitProof).says("not serving")
				n.run("uninstall", "--force").exits(0)
				n.stateUnchanged(before)
				f.checkWorks()
			})
		}
	}
}

// TestInitSucceedsOnceTheForeignProgramIsGone: a failed run leaves nothing that stands in the next one's way.
func TestInitSucceedsOnceTheForeignProgramIsGone(t *testing.T) {
	n := newNode(t)
	n.serving()
	t.Run("in the way", func(t *testing.T) {
		blocked := n
		blocked.T = t
		blocked.attachForeign("connect6", allowOverride)
		blocked.run(initArgs()...).exits(bootstrap.ExitAttach)
	})
	n.init()
	n.checkServes()
	n.checkOneOfEach()
}
