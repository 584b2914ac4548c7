package units

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// conform is what every Manager does, on a host where fh-test.service does not exist.
func conform(t *testing.T, h host, m Manager) {
	t.Helper()
	ctx := context.Background()
	const name = "fh-test.service"
	file, link := path.Join(systemDir, name), path.Join(systemDir, "multi-user.target.wants", name)
	state := func(step string, want State) {
		t.Helper()
		got, err := m.State(ctx, name)
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		got.ActiveState = "" // only a manager that runs has one
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", step, d)
		}
	}
	linked := func(step string, err error, want bool) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if target, _ := os.Readlink(h.path(link)); (target == file) != want {
			t.Errorf("%s: the link leads to %q", step, target)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	state("no unit file", State{LoadState: "not-found"})
	if err := m.Enable(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Errorf("enable without a unit file: %v, want ErrNotFound", err)
	}
	linked("disable without a unit file", m.Disable(ctx, name), false)

	h.write(file, "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
	must(m.Reload(ctx))
	state("a new unit file", State{LoadState: "loaded", UnitFileState: "disabled", FragmentPath: file})
	linked("enable", m.Enable(ctx, name), true)
	linked("enable again", m.Enable(ctx, name), true)
	must(m.Reload(ctx))
	state("enabled", State{LoadState: "loaded", UnitFileState: "enabled", FragmentPath: file})
	linked("disable", m.Disable(ctx, name), false)
	linked("disable again", m.Disable(ctx, name), false)
	must(m.Reload(ctx))
	state("disabled", State{LoadState: "loaded", UnitFileState: "disabled", FragmentPath: file})
	must(m.Stop(ctx, name))

	must(os.Remove(h.path(file)))
	h.write(file, "-> /dev/null")
	must(m.Reload(ctx))
	state("masked", State{LoadState: "masked", UnitFileState: "masked", FragmentPath: file})
	if err := m.Enable(ctx, name); !errors.Is(err, ErrMasked) {
		t.Errorf("enable a masked unit: %v, want ErrMasked", err)
	}
	must(os.Remove(h.path(file)))
	h.write(file, "[Service]\nExecStart=/bin/true\n")
	must(m.Reload(ctx))
	state("no [Install] section", State{LoadState: "loaded", UnitFileState: "static", FragmentPath: file})
	must(os.Remove(h.path(file)))

	// The refusal that we know of before it happens.
	mount := MountUnitName(DefaultBPFFS)
	h.write(path.Join(systemDir, mount), ourMount)
	must(m.Reload(ctx))
	if s, err := m.State(ctx, mount); err != nil || s.LoadState != "bad-setting" {
		t.Errorf("a mount unit for %s: %+v, %v, want bad-setting", DefaultBPFFS, s, err)
	}
	must(os.Remove(h.path(path.Join(systemDir, mount))))
	must(m.Reload(ctx))
}

func TestFilesConform(t *testing.T) {
	h := newHost(t, systemd252)
	conform(t, h, newFiles(h.root, 252))
}

func TestFakeConforms(t *testing.T) {
	h := newHost(t, systemd252)
	conform(t, h, newFake(h.root, 252))
}

// A systemd that runs hears of each change, once, and asked at the end.
func TestInstallTellsSystemd(t *testing.T) {
	h := newHost(t, systemd252)
	before := h.snapshot()
	f := newFake(h.root, 252)
	c := h.config()
	c.manager = f
	r := mustInstall(t, c)
	if f.reloads != 1 || !strings.HasSuffix(kinds(r), "reload systemd") {
		t.Errorf("%d reloads:\n%s", f.reloads, kinds(r))
	}
	want := &State{LoadState: "loaded", UnitFileState: "enabled", FragmentPath: servicePath, ActiveState: "inactive"}
	if d := cmp.Diff(want, r.Unit); d != "" {
		t.Errorf("unit (-want +got):\n%s", d)
	}
	if again := mustInstall(t, c); again.Changed() || f.reloads != 1 {
		t.Errorf("the second install did:\n%s", kinds(again))
	}
	// Somebody edits the file and puts it back without a reload, or a run was
	// killed before its own: the next one reloads.
	h.write(servicePath, h.read(servicePath)+"\n")
	if r := mustInstall(t, c); !strings.Contains(kinds(r), "write "+servicePath) || f.reloads != 2 {
		t.Errorf("did:\n%s", kinds(r))
	}
	f.content[ServiceName] = "older"
	if r := mustInstall(t, c); kinds(r) != "reload systemd" {
		t.Errorf("systemd has not read the file, did:\n%s", kinds(r))
	}
	if err := f.start(ServiceName); err != nil {
		t.Fatal(err)
	}
	if r := mustUninstall(t, c); f.active[ServiceName] {
		t.Errorf("the service is active still:\n%s", kinds(r))
	}
	h.same(before, "install and uninstall")
}

// What is installed in a tree runs when a real systemd boots from it, before
// the kubelet, with all that the work needs and no more; then the same systemd
// is asked over both of its sockets.
func TestManagerOfARealSystemd(t *testing.T) {
	template := rootTemplate(t)
	template.write(EnvironmentFile, stubEnv+"=/run/stub.json\n")
	args := []string{"init", "--boot", "--text=$HOME ${X} %h %% \"q\" 'a' \\ back\ttab\nline", ";", "", "ü", "a;b"}
	c := template.config()
	c.initSystem, c.Args = &Init{Kind: Systemd, Version: 252}, args
	if r := mustInstall(t, c); !r.Survives {
		t.Fatalf("%+v", r)
	}
	box := boot(t, template)

	saw := box.root + "/run/kubelet-saw.json"
	box.wait("the kubelet", func() bool { _, err := os.Stat(box.root + "/run/kubelet-started"); return err == nil })
	data, err := os.ReadFile(saw)
	if err != nil {
		t.Fatalf("the kubelet found no work done: %v\n%s", err, box.console())
	}
	var got stubReport
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(args, got.Args); d != "" {
		t.Errorf("arguments (-want +got):\n%s", d)
	}
	for what, result := range got.Tried {
		if strings.HasPrefix(what, "NOT ") != (result != "") {
			t.Errorf("%s: %q", what, result)
		}
	}
	if _, err := os.Stat(box.root + DefaultBPFFS + "/fh-stub"); err != nil {
		t.Errorf("the service's mount and pin are not pid 1's: %v", err)
	}

	// systemd's private socket wants to see its peer's pid, so the peer must
	// be in its pid namespace or, as a pod on a real host, below it.
	inside := exec.Command("nsenter", "--target", strings.Split(box.root, "/")[2], "--pid", self(t), "-test.v", "-test.run=^TestManagerOfTheLiveSystemd$")
	inside.Env = append(os.Environ(), liveEnv+"="+box.root)
	out, err := inside.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestManagerOfTheLiveSystemd") {
		t.Errorf("inside of the container: %v\n%s\n%s", err, out, box.console())
	}
}

// liveEnv names the root of a container whose pid namespace we are in.
const liveEnv = "FH_UNITS_LIVE"

// TestManagerOfTheLiveSystemd is the part of TestManagerOfARealSystemd that talks to systemd.
func TestManagerOfTheLiveSystemd(t *testing.T) {
	root := os.Getenv(liveEnv)
	if root == "" {
		t.Skip("run by TestManagerOfARealSystemd")
	}
	h := host{t: t, root: root}
	open := func(t *testing.T, socket string) Manager {
		t.Helper()
		m, err := openSocket(context.Background(), root+socket, handshake)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		return m
	}
	for _, socket := range []string{privateSocket, busSocket} {
		t.Run("the manager over "+path.Base(socket), func(t *testing.T) {
			h := host{t: t, root: root}
			conform(t, h, open(t, socket))
		})
	}

	// Upgrade and remove what the container booted with.
	args := mustReadArgs(t, h)
	c := Config{Root: root, BinarySource: self(t), Args: args, statfs: onDisk}
	r := mustInstall(t, c)
	if r.Changed() || r.Init.Version == 0 || !strings.HasPrefix(r.Init.Source, "D-Bus") {
		t.Errorf("over %s, %+v, install did:\n%s", r.Over, r.Init, kinds(r))
	}
	want := &State{LoadState: "loaded", UnitFileState: "enabled", FragmentPath: servicePath, ActiveState: "active"}
	if d := cmp.Diff(want, r.Unit); d != "" {
		t.Errorf("unit (-want +got):\n%s", d)
	}
	c.Args = []string{"init", "--boot"}
	if r := mustInstall(t, c); kinds(r) != "write "+servicePath+"\nreload systemd" {
		t.Errorf("over %s, the upgrade did:\n%s", r.Over, kinds(r))
	}
	if r := mustUninstall(t, c); r.Over == "files" || !strings.Contains(kinds(r), "stop "+ServiceName) {
		t.Errorf("over %s %v, uninstall did:\n%s", r.Over, r.Notes, kinds(r))
	}
	if s, err := open(t, privateSocket).State(context.Background(), ServiceName); err != nil || s.LoadState != "not-found" || s.ActiveState != "inactive" {
		t.Errorf("after uninstall: %+v, %v", s, err)
	}
	for p := range h.snapshotOf("/etc", "/opt") {
		if strings.Contains(p, "firsthop") && p != EnvironmentFile {
			t.Errorf("uninstall left %s", p)
		}
	}
	if r := mustInstall(t, c); r.Unit.UnitFileState != "enabled" || !r.Survives {
		t.Errorf("%+v", r)
	}
}

// mustReadArgs returns the arguments with which the service ran.
func mustReadArgs(t *testing.T, h host) []string {
	t.Helper()
	var r stubReport
	if err := json.Unmarshal([]byte(h.read("/run/stub.json")), &r); err != nil {
		t.Fatal(err)
	}
	return r.Args
}

func newFiles(root string, version int) *files {
	return &files{t: newTree(Config{Root: root}), version: version}
}
