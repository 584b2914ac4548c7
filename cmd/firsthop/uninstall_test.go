package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/uninstall"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

func TestUninstallRefusesToCutOff(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init("--extra-service", extra4)
	before := n.snapshot()
	n.run("uninstall").exits(bootstrap.ExitInternal).says("nothing else serves", vip4, vip6, dns4, "--force")
	n.unchanged(before)
	defer n.startImpostor()() // a name serves nobody
	n.run("uninstall").exits(bootstrap.ExitInternal)
	n.serveByRules(vip4)
	n.run("uninstall").exits(bootstrap.ExitInternal).says("nothing else serves", vip6)
	n.unchanged(before)
	n.serveByRules(vip6)
	n.run("uninstall").exits(0)
	n.run("status").exits(bootstrap.ExitProof)
}

// A runtime would bring back at once what an uninstall takes away, even a forced one.
func TestUninstallRefusesBesideARuntime(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	unlock, err := instance.LockRuntime(n.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	before := n.snapshot()
	n.run("uninstall", "--force").exits(bootstrap.ExitInternal).says("a runtime is at work", fmt.Sprint(os.Getpid()), "systemctl stop firsthop")
	n.unchanged(before)
	unlock()
	n.run("uninstall", "--force").exits(0)
	if _, err := os.Stat(filepath.Join(n.RunDir, instance.RuntimeLockName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime's lock is still there: %v", err)
	}
}

// place is a way to lay out an instance: what is there before the first init.
type place struct {
	name string
	opts []lab.Option
	make func(n *node)
}

func places() []place {
	return []place{
		{"all directories are there", nil, func(*node) {}},
		{"no directory is there", []lab.Option{lab.WithoutBPFFS()}, func(n *node) { n.without(n.StateDir, n.RunDir) }},
		{"not even their parents", []lab.Option{lab.WithoutBPFFS()}, func(n *node) {
			n.without(n.StateDir, n.RunDir)
			n.StateDir, n.RunDir, n.BPFFS = n.Dir+"/var/lib/firsthop", n.Dir+"/new/run/firsthop", n.Dir+"/sys/fs/bpf"
		}},
		{"a bpffs to mount on a directory with a mode of its own", []lab.Option{lab.WithoutBPFFS()}, func(n *node) {
			if err := os.Mkdir(n.BPFFS, 0o751); err != nil {
				n.Fatal(err)
			}
		}},
		{"a bpffs that holds something of others", nil, func(n *node) { n.pinForeign(n.BPFFS + "/agent/maps/one") }},
		{"directories that hold something of others", nil, func(n *node) {
			for _, dir := range []string{n.StateDir, n.RunDir} {
				if err := os.WriteFile(filepath.Join(dir, "theirs.json"), []byte("{}"), 0o640); err != nil {
					n.Fatal(err)
				}
			}
		}},
	}
}

func (n node) without(dirs ...string) {
	n.Helper()
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil {
			n.Fatal(err)
		}
	}
}

// TestUninstallLeavesNoTrace compares the node before the first init with the node after an uninstall.
func TestUninstallLeavesNoTrace(t *testing.T) {
	persist := []string{"init", "--service-ips", vips, "--endpoints", servers, "--extra-service", extra4}
	for _, p := range places() {
		for _, tc := range []struct {
			name  string
			lines [][]string
			fails bool
		}{
			{"an init", [][]string{persist}, false},
			{"two that differ", [][]string{persist, initArgs("--udp=false", "--forbid-feature", "cgroup-link"), persist}, false},
			{"one that failed", [][]string{append(persist, "--endpoints", "127.0.0.1:1,[::1]:1", "--timeout", "50ms")}, true},
			{"one that failed early", [][]string{append(persist, "--forbid-feature", "connect4")}, true},
		} {
			t.Run(p.name+", "+tc.name, func(t *testing.T) {
				n := newNode(t, p.opts...)
				n.serving()
				p.make(&n)
				before := n.traces()
				for _, line := range tc.lines {
					if r := n.run(line...); (r.code != 0) != tc.fails {
						t.Fatalf("exit code %d\n%s", r.code, r.stdout)
					}
				}
				n.checkUninstall(before)
			})
		}
	}
}

// checkUninstall uninstalls: what it announces is what it does, what is left is what was before, and the second time it
// does nothing.
func (n node) checkUninstall(before snapshot) {
	n.Helper()
	full, lasting := n.traces(), n.snapshot()
	var announced, removed []uninstall.Removal
	n.run("uninstall", "--force", "--dry-run", "-o", "json").exits(0).decode(&announced)
	n.unchanged(lasting)
	n.run("uninstall", "--force", "-o", "json").exits(0).decode(&removed)
	if diff := cmp.Diff(announced, removed); diff != "" {
		n.Errorf("removed is not what was announced (- announced, + removed):\n%s", diff)
	}
	after := n.traces()
	if diff := cmp.Diff(before, after); diff != "" {
		n.Errorf("traces (- before, + after):\n%s", diff)
	}
	n.checkList(full, after, announced)
	n.run("uninstall", "--force").exits(0).says("nothing of firsthop's is here")
	n.run("uninstall").exits(0).says("nothing of firsthop's is here")
	if diff := cmp.Diff(before, n.traces()); diff != "" {
		n.Errorf("traces after the second time (- before, + after):\n%s", diff)
	}
}

// checkList compares an uninstall's list with what is gone.
func (n node) checkList(full, after snapshot, list []uninstall.Removal) {
	n.Helper()
	gone := map[string]bool{}
	for _, line := range full {
		if !slices.Contains(after, line) {
			gone[strings.TrimPrefix(strings.TrimPrefix(strings.Fields(line)[0], "program"), "mount")] = true
			if strings.HasPrefix(line, "mount at ") {
				gone[strings.TrimPrefix(line, "mount at ")] = true
			}
		}
	}
	listed := map[string]bool{}
	for _, r := range list {
		listed[r.Target] = true
		if r.Kind != "program" && !gone[r.Target] {
			n.Errorf("listed but still there: %s %s", r.Kind, r.Target)
		}
	}
	kernels := func(path string) bool { // what comes and goes with a bpffs
		return path == "" || filepath.Base(path) == "maps.debug" || filepath.Base(path) == "progs.debug"
	}
	for path := range gone {
		if !listed[path] && !kernels(path) {
			n.Errorf("gone but not listed: %s", path)
		}
	}
}

// TestUninstallKilledAnywhereGoesOnTheNextTime kills uninstalls at every step.
func TestUninstallKilledAnywhereGoesOnTheNextTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first time.Duration
		opts  []lab.Option
		more  []string
		make  func(n *node)
	}{
		{"by bpf_link", 0, nil, nil, func(*node) {}},
		{"by PROG_ATTACH, and a bpffs to unmount", 250 * time.Microsecond, []lab.Option{lab.WithoutBPFFS()}, []string{"--forbid-feature", "cgroup-link"}, func(n *node) {
			n.without(n.StateDir, n.RunDir)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, tc.opts...)
			n.serving()
			tc.make(&n)
			before := n.traces()
			line := append([]string{"init", "--service-ips", vips, "--endpoints", servers}, tc.more...)
			n.run(line...).exits(0)
			n.sweep(tc.first, func(delay time.Duration) {
				n.run("uninstall", "--force").exits(0)
				if diff := cmp.Diff(before, n.traces()); diff != "" {
					t.Errorf("after a kill at %s (- before, + after):\n%s", delay, diff)
				}
				n.run(line...).exits(0)
			}, func() []string { return []string{"uninstall", "--force"} })
		})
	}
}

// TestUninstallWaitsForAnInitAndUndoesIt: what is to go is what is there once the lock is held.
func TestUninstallWaitsForAnInitAndUndoesIt(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	before := n.traces()
	holder := n.slow(t.Context())
	n.run("uninstall", "--force", "--lock-timeout", "20s").exits(0)
	if err := holder.Wait(); err != nil {
		t.Error("the init:", err)
	}
	if diff := cmp.Diff(before, n.traces()); diff != "" {
		t.Errorf("traces (- before, + after):\n%s", diff)
	}
}

// TestUninstallBesideInits: each succeeds, in whatever order.
func TestUninstallBesideInits(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	n.without(n.StateDir, n.RunDir)
	before := n.traces()
	results := make(chan result)
	const rounds = 10
	for range rounds {
		for _, line := range [][]string{initArgs(), {"uninstall", "--force"}} {
			cmd := n.command(t.Context(), nil, line...)
			go func() { results <- finish(t, cmd, func() error { return n.start(cmd) }) }()
		}
	}
	for range 2 * rounds {
		if r := <-results; r.code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", r.args[0], r.code, r.stdout, r.stderr)
		}
	}
	n.init()
	n.checkOneOfEach()
	n.run("uninstall", "--force").exits(0)
	if diff := cmp.Diff(before, n.traces()); diff != "" {
		t.Errorf("traces (- before, + after):\n%s", diff)
	}
}

// TestUninstallAfterAReboot: what a reboot takes is gone, and the rest is undone.
func TestUninstallAfterAReboot(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	n.without(n.StateDir, n.RunDir)
	before := n.traces()
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0)
	if err := errors.Join(unix.Unmount(n.BPFFS, unix.MNT_DETACH), os.Remove(n.BPFFS), os.RemoveAll(n.RunDir)); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the links to be gone", func() bool { return len(n.attached()) == 0 })
	n.checkUninstall(before)
}

// What was saved for another machine or was damaged is kept aside until the uninstall.
func TestUninstallRemovesWhatWasKeptAside(t *testing.T) {
	n := newNode(t, lab.WithoutBPFFS())
	n.serving()
	n.without(n.StateDir, n.RunDir)
	before := n.traces()
	n.run("init", "--service-ips", vips, "--endpoints", servers).exits(0)
	for _, path := range apiserver.CacheFiles(n.StateDir) {
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.run("uninstall", "--force").exits(0)
	if diff := cmp.Diff(before, n.traces()); diff != "" {
		t.Errorf("traces (- before, + after):\n%s", diff)
	}
}

// TestUninstallSparesWhatIsNotOurs: somebody else's mount over ours, and a cgroup that is gone.
func TestUninstallSparesWhatIsNotOurs(t *testing.T) {
	t.Run("a mount of others in the place of ours", func(t *testing.T) {
		n := newNode(t, lab.WithoutBPFFS())
		n.serving()
		n.init()
		if err := unix.Unmount(n.BPFFS, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("bpf", n.BPFFS, "bpf", 0, "mode=0700"); err != nil {
			t.Fatal(err)
		}
		mounts := n.mounts()
		n.run("uninstall", "--force").exits(0)
		if got := n.mounts(); !slices.Equal(got, mounts) {
			t.Errorf("mounts %q, before %q", got, mounts)
		}
	})
	t.Run("the cgroup is gone", func(t *testing.T) {
		n := newNode(t)
		n.serving()
		before := n.traces()
		cgroup, err := n.NewCgroup("node")
		if err != nil {
			t.Fatal(err)
		}
		n.init("--cgroup", cgroup)
		if err := os.Remove(cgroup); err != nil {
			t.Fatal(err)
		}
		n.run("status", "--cgroup", cgroup).exits(bootstrap.ExitProof).says(cgroup)
		n.run("uninstall", "--force", "--cgroup", cgroup).exits(0)
		if diff := cmp.Diff(before, n.traces()); diff != "" {
			t.Errorf("traces (- before, + after):\n%s", diff)
		}
	})
}

// TestUninstallFailsNoConnectionThatLives: what is connected stays connected.
func TestUninstallKeepsEstablishedConnections(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	n.init()
	cmd := n.Command(t.Context(), "python3", "-c", `
import socket, sys
s = socket.create_connection(("10.96.0.1", 443)); f = s.makefile("rw")
for line in sys.stdin:
    f.write(line); f.flush(); sys.stdout.write(f.readline()); sys.stdout.flush()
`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	exchange := func() {
		t.Helper()
		if _, err := in.Write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
		if size, err := out.Read(buf); err != nil || !strings.Contains(string(buf[:size]), `"b4"`) {
			t.Fatalf("%q, %v", buf[:size], err)
		}
	}
	exchange()
	n.run("uninstall", "--force").exits(0)
	exchange()
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if e := clients.At(client).Run(t, n.Lab, clients.TCP, vip4, "x")[0]; e.Error != "connect ENETUNREACH" {
		t.Errorf("after an uninstall: %+v", e)
	}
}
