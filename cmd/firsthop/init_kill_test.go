package main

import (
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
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// killAfter runs firsthop and kills it after a delay, unless it has ended by then: it says so.
func (n node) killAfter(delay time.Duration, args ...string) (ended bool) {
	n.Helper()
	cmd := n.command(n.Context(), nil, args...)
	if err := n.start(cmd); err != nil {
		n.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			n.Errorf("%q failed by itself: %v", args, err)
		}
		return true
	case <-time.After(delay):
	}
	_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	<-done
	return cmd.ProcessState.Success()
}

// sweep kills a command after one delay after another, until it has ended three times before it was killed: then every
// one of its steps was hit, however fast the machine is. Between two, again is called. Sweeps with other first delays
// hit other instants.
func (n node) sweep(first time.Duration, again func(delay time.Duration), args func() []string) {
	n.Helper()
	const most = 500 * time.Millisecond
	step, ends := 500*time.Microsecond, 0
	for delay := first; ends < 3 && delay < most && !n.Failed(); delay += step {
		if n.killAfter(delay, args()...) {
			ends++
		}
		again(delay)
		if delay > 30*time.Millisecond {
			step = 2 * time.Millisecond // a slow machine
		}
	}
	if ends == 0 && !n.Failed() {
		n.Errorf("it never ended within %s", most)
	}
}

// TestInitKilledAnywhereSucceedsTheNextTime kills the first init of a node at every step.
func TestInitKilledAnywhereSucceedsTheNextTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first time.Duration
		more  []string
		opts  []lab.Option
	}{
		{"by bpf_link", 0, nil, nil},
		{"by PROG_ATTACH", 160 * time.Microsecond, []string{"--forbid-feature", "cgroup-link"}, nil},
		{"with a bpffs to mount", 330 * time.Microsecond, nil, []lab.Option{lab.WithoutBPFFS()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, tc.opts...)
			n.serving()
			before := n.traces()
			args := initArgs(append(tc.more, "--extra-service", extra4)...)
			n.sweep(tc.first, func(delay time.Duration) {
				if r := n.run(args...); r.code != 0 {
					t.Fatalf("after a kill at %s: exit code %d\n%s%s", delay, r.code, r.stdout, r.stderr)
				}
				n.checkOneOfEach()
				n.checkServes()
				n.run("uninstall", "--force").exits(0)
				if diff := cmp.Diff(before, n.traces()); diff != "" {
					t.Errorf("after a kill at %s, an init and an uninstall (- before, + after):\n%s", delay, diff)
				}
			}, func() []string { return args })
		})
	}
}

// traces are what an uninstall must bring back: files, directories and their modes, pins, mounts, attached programs.
// Unlike a snapshot it has no times, and no inodes: what is made anew is as good as what was there.
func (n node) traces() snapshot {
	n.Helper()
	s := slices.Concat(n.attached(), n.mountPoints())
	err := filepath.WalkDir(n.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			s = append(s, fmt.Sprintf("%s %s", path, info.Mode()))
		}
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	return s
}

func (n node) mountPoints() snapshot {
	n.Helper()
	var s snapshot
	for _, m := range n.mounts() {
		s = append(s, "mount at "+strings.Fields(m)[5])
	}
	return s
}

// TestInitKilledDuringAChangeFailsNoConnect changes endpoints and the way of attaching, and is killed at every step
// while clients connect: clients that are served stay so.
func TestInitKilledDuringAChangeFailsNoConnect(t *testing.T) {
	n := newNode(t)
	for _, addr := range []string{server4, server6, "127.0.0.2:6443"} {
		n.echo("tcp", addr, addr)
	}
	n.init()
	hammer4 := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip4, Workers: 4, Do: clients.Echo})
	hammer6 := clients.StartHammer(t, n.Lab, client, clients.HammerConfig{Addr: vip6, Workers: 2, Do: clients.Echo})
	turn := 0
	next := func() []string {
		turn++
		return initArgs(changing(turn)...)
	}
	n.sweep(0, func(delay time.Duration) {
		if turn%8 == 0 { // not each time, so that a killed run finds what a killed run left
			n.run(next()...).exits(0)
			n.checkOneOfEach()
		}
	}, next)
	r := n.init()
	n.checkOneOfEach()
	if got := r.Services[0].Backends; len(got) != 1 || got[0].String() != server4 {
		t.Errorf("the backends are %v, want %s", got, server4)
	}
	for addr, h := range map[string]*clients.Hammer{vip4: hammer4, vip6: hammer6} {
		checkHammered(t, addr, h.Stop(), 100)
	}
}

// changing gives flags that change the table each turn, and the programs each second one.
func changing(turn int) []string {
	flags := []string{"--endpoints", servers}
	if turn%2 == 1 {
		flags[1] = "127.0.0.2:6443," + server6
	}
	if turn/2%2 == 1 {
		flags = append(flags, "--forbid-feature", "cgroup-link")
	}
	return flags
}

func checkHammered(t *testing.T, addr string, r clients.Hammered, least int64) {
	t.Helper()
	if len(r.Failures) > 0 || r.Connects < least {
		t.Errorf("%s: %d connects, failures %v; want at least %d and no failure", addr, r.Connects, r.Failures, least)
	}
	t.Logf("%s: %d connects in %s, the slowest %s, by %v", addr, r.Connects, r.Elapsed, r.Slowest, r.Servers)
}

// TestAKilledInitLeavesAFailedRunsMark: the last report is that of a run that ended.
func TestStatusAfterAKilledInit(t *testing.T) {
	n := newNode(t)
	n.serving()
	holder := n.slow(t.Context())
	_ = unix.Kill(holder.Process.Pid, unix.SIGKILL)
	_ = holder.Wait()
	n.run("status").exits(bootstrap.ExitProof).says("not serving")
	n.run(initArgs()...).exits(0)
	n.run("status").exits(0).says("serving; proven")
}

// TestInitRemovesLeftoversOfKilledRuns puts there what a run leaves that is killed while it writes a file, which no sweep is sure to
// hit.
func TestInitRemovesLeftoversOfKilledRuns(t *testing.T) {
	leave := func(n node) {
		for _, path := range []string{n.RunDir + "/.changes.json.123", n.RunDir + "/.status.json.4", n.StateDir + "/.changes.json.5", n.StateDir + "/.apiserver.json.6"} {
			if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
				n.Fatal(err)
			}
		}
	}
	n := newNode(t)
	n.serving()
	before := n.traces()
	leave(n)
	n.init()
	n.checkOneOfEach()
	leave(n)
	n.run("uninstall", "--force").exits(0)
	if diff := cmp.Diff(before, n.traces()); diff != "" {
		t.Errorf("traces (- before, + after):\n%s", diff)
	}
}
