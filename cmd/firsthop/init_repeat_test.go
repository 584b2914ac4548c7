package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

func TestInitAgainChangesNothing(t *testing.T) {
	n := newNode(t)
	n.serving()
	more := []string{"--extra-service", extra4, "--extra-service", extra6}
	n.init(more...)
	state := n.state()
	table := n.table()
	for _, order := range []string{servers, server6 + "," + server4} {
		r := n.init(append(more, "--endpoints", order)...)
		n.stateUnchanged(state)
		n.tableUnchanged(table)
		for _, h := range r.Hooks {
			if h.Change != attach.Kept {
				t.Errorf("%s is %s, want kept", h.Hook, h.Change)
			}
		}
		for _, s := range r.Services {
			if s.Change != attach.Kept {
				t.Errorf("%s is %s, want kept", s.Name, s.Change)
			}
		}
		for _, s := range r.Steps {
			if len(s.Changes) > 0 {
				t.Errorf("step %s says that it changed %q", s.Step, s.Changes)
			}
		}
	}
}

// state is what serves: pins with their inodes and ids, attached programs, mounts. Unlike a snapshot it leaves out the
// files of the run and state directories.
func (n node) state() snapshot {
	n.Helper()
	return slices.Concat(n.tree(n.BPFFS), n.attached(), n.mounts())
}

func (n node) stateUnchanged(before snapshot) {
	n.Helper()
	if diff := cmp.Diff(before, n.state()); diff != "" {
		n.Errorf("what serves changed (- before, + after):\n%s", diff)
	}
}

func TestInitTwentyAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		line []string
	}{
		{"by bpf_link", nil},
		{"by PROG_ATTACH", []string{"--forbid-feature", "cgroup-link"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			n.initBeside(20, func(int) []string { return tc.line })
			n.checkOneOfEach()
		})
	}
}

// checkOneOfEach wants one program at every hook, all on the pinned maps, and no pin, map or file that was left over.
func (n node) checkOneOfEach() {
	n.Helper()
	dir, err := os.Open(n.Cgroup)
	if err != nil {
		n.Fatal(err)
	}
	defer dir.Close()
	var programs []ebpf.ProgramID
	for _, h := range bpf.Hooks() {
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.Attach})
		if err != nil {
			n.Fatal(err)
		}
		if len(q.Programs) != 1 {
			n.Errorf("%d programs at %s, want 1", len(q.Programs), h.Name)
		}
		for _, p := range q.Programs {
			programs = append(programs, p.ID)
		}
	}
	n.checkMapsOf(programs)
	n.checkPins()
	for _, dir := range []string{n.StateDir, n.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.Fatal(err)
		}
		for _, e := range entries {
			if !slices.Contains([]string{instance.LockName, instance.StatusName, instance.JournalName, instance.BackupName, "apiserver.json"}, e.Name()) {
				n.Errorf("left over: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
}

// checkMapsOf wants that the programs use the pinned maps and, besides them, only settings.
func (n node) checkMapsOf(programs []ebpf.ProgramID) {
	n.Helper()
	maps, err := bpf.OpenMaps(n.pins(), true)
	if err != nil {
		n.Fatal(err)
	}
	defer maps.Close()
	ours := map[ebpf.MapID]bool{}
	for _, name := range bpf.MapNames() {
		info, err := maps.Map(name).Info()
		if err != nil {
			n.Fatal(err)
		}
		id, _ := info.ID()
		ours[id] = true
	}
	for _, id := range programs {
		for _, m := range n.mapsOf(id) {
			if id, _ := m.ID(); !ours[id] && !strings.HasSuffix(m.Name, "rodata") {
				n.Errorf("a program uses the map %d, %q, which isn't pinned", id, m.Name)
			}
		}
	}
}

func (n node) mapsOf(id ebpf.ProgramID) (infos []*ebpf.MapInfo) {
	n.Helper()
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		n.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		n.Fatal(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			n.Fatal(err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			n.Fatal(err)
		}
		infos = append(infos, info)
	}
	return infos
}

// checkPins wants all maps, a link or a program for each hook, and nothing else.
func (n node) checkPins() {
	n.Helper()
	pins, err := natinit.Pinned(n.pins())
	if err != nil {
		n.Fatal(err)
	}
	want := n.pins().AllMapPins()
	dir := n.pins().Links()
	if _, err := os.Stat(dir); err != nil {
		dir = n.pins().Progs()
	}
	for _, h := range bpf.Hooks() {
		want = append(want, filepath.Join(dir, h.Name))
	}
	slices.Sort(pins)
	slices.Sort(want)
	if diff := cmp.Diff(want, pins); diff != "" {
		n.Errorf("pins (- wanted, + there):\n%s", diff)
	}
}

// slow starts an init that holds the lock for long, as its only API server doesn't answer, and returns when it has it.
func (n node) slow(ctx context.Context) *exec.Cmd {
	n.Helper()
	if err := n.Drop("192.0.2.66/32"); err != nil {
		n.Fatal(err)
	}
	cmd := n.command(ctx, nil, "init", "--service-ips", vip4, "--endpoints", "192.0.2.66:6443", "--persist", "off", "--prove", "translated")
	if err := n.start(cmd); err != nil {
		n.Fatal(err)
	}
	pid := fmt.Sprint(cmd.Process.Pid, " ")
	lab.Await(n.T, "the lock to be held", func() bool {
		text, _ := os.ReadFile(filepath.Join(n.RunDir, instance.LockName))
		return strings.HasPrefix(string(text), pid)
	})
	return cmd
}

func TestInitWaitsForTheLockAndNamesItsHolder(t *testing.T) {
	n := newNode(t)
	n.serving()
	holder := n.slow(t.Context())
	for _, line := range [][]string{initArgs(), {"uninstall", "--force"}, {"install", "--service-ips", vips, "--endpoints", servers}} {
		n.run(append(line, "--lock-timeout", "20ms")...).exits(bootstrap.ExitInternal).
			says("another firsthop", fmt.Sprintf("held by pid %d (%s init)", holder.Process.Pid, firsthop))
	}
	n.run(initArgs("--dry-run", "--lock-timeout", "0")...).exits(0) // needs no lock
	n.run("status").exits(bootstrap.ExitProof)
	n.run(initArgs()...).exits(0).says("for another firsthop") // waits
	if err := holder.Wait(); err != nil {
		t.Error("the first init:", err)
	}
}

func TestInitTakesTheLockOfADeadHolder(t *testing.T) {
	n := newNode(t)
	n.serving()
	holder := n.slow(t.Context())
	if err := unix.Kill(holder.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	n.run(initArgs("--lock-timeout", "0")...).exits(0)
	n.checkServes()
}

// checkServes wants an answer through both Service addresses.
func (n node) checkServes() {
	n.Helper()
	for _, addr := range []string{vip4, vip6} {
		if err := n.connect(addr); err != nil {
			n.Errorf("connect to %s: %v", addr, err)
		}
	}
}

// connect makes one connection from inside of the cgroup.
func (n node) connect(addr string) error {
	out, err := n.Command(n.Context(), client, "-workers=1", "-for=1ns", "-do=reset", "hammer", addr).Output()
	if err != nil {
		return err
	}
	if strings.Contains(string(out), `"failures":{}`) {
		return nil
	}
	return errors.New(strings.TrimSpace(string(out)))
}

// initBeside runs that many inits at once: all succeed, and one of them attaches.
func (n node) initBeside(inits int, args func(i int) []string) {
	n.T.Helper()
	results := make(chan result)
	for i := range inits {
		cmd := n.command(n.Context(), nil, initArgs(args(i)...)...)
		go func() { results <- finish(n.T, cmd, func() error { return n.start(cmd) }) }()
	}
	attached := 0
	for range inits {
		r := <-results
		if r.code != 0 {
			n.T.Errorf("exit code %d:\n%s%s", r.code, r.stdout, r.stderr)
		}
		if strings.Contains(r.stdout, "connect4: program") {
			attached++
		}
	}
	if attached != 1 {
		n.T.Errorf("%d of them attached, want 1", attached)
	}
}
