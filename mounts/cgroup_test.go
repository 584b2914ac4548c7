package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// v2Root is where this machine has its cgroup v2 hierarchy.
func v2Root(t testing.TB) string {
	t.Helper()
	needRoot(t)
	for _, p := range []string{pureV2Path, hybridPath} {
		if id, err := CgroupID(p); err == nil && IsTopCgroup(id) {
			return p
		}
	}
	t.Fatal("no cgroup v2 hierarchy on this machine")
	return ""
}

// newCgroup makes a cgroup that is removed with the test.
func newCgroup(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(v2Root(t), fmt.Sprintf("fh-mounts-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		_ = os.Remove(dir + "/pod/ctr")
		_ = os.Remove(dir + "/pod")
		_ = os.Remove(dir + "/sibling")
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// cgroupRow is how a node in a cgroup namespace of its own (kind) has cgroup v2,
// and what is found. The node's mounts begin with a bare tmpfs at
// /sys/fs/cgroup, with the whole machine's hierarchy at /run/machine.
type cgroupRow struct {
	is    string
	make  func(t *testing.T)
	state CgroupState
	path  string // where the true root is found, on the node
	says  []string
}

func mountV2(t *testing.T, at string) {
	must(t, os.MkdirAll(at, 0o755))
	mount(t, "cgroup2", at, "cgroup2", 0, "")
}

func cgroupRows() []cgroupRow {
	return []cgroupRow{
		{is: "pure v2", state: CgroupPureV2, path: pureV2Path, make: func(t *testing.T) { mountV2(t, pureV2Path) }},
		{is: "hybrid", state: CgroupHybrid, path: hybridPath, make: func(t *testing.T) { mountV2(t, hybridPath) }},
		{is: "mounted at another place", state: CgroupElsewhere, path: "/run/else where", make: func(t *testing.T) { mountV2(t, "/run/else where") }},
		{is: "not mounted", state: CgroupNotMounted, make: func(*testing.T) {}},
		{is: "a bind mount of a cgroup at the usual place is not the root", state: CgroupNotMounted, says: []string{"/sys/fs/cgroup is a cgroup2, but cgroup"},
			make: func(t *testing.T) {
				mountV2(t, "/run/v2")
				bind(t, "/run/v2/pod", pureV2Path)
				must(t, unix.Unmount("/run/v2", unix.MNT_DETACH))
			}},
		{is: "of several the root is taken", state: CgroupElsewhere, path: "/run/v2",
			make: func(t *testing.T) { mountV2(t, "/run/v2"); bind(t, "/run/v2/pod", pureV2Path) }},
		{is: "what is above the node's cgroup namespace is not the root", state: CgroupNotMounted, says: []string{"/run/machine is a cgroup2, but cgroup"},
			make: func(t *testing.T) { bind(t, "/run/machine", pureV2Path) }},
		{is: "a mount that another hides is not taken", state: CgroupNotMounted,
			make: func(t *testing.T) { mountV2(t, "/run/v2"); mount(t, "x", "/run/v2", "tmpfs", 0, "") }},
	}
}

// TestCgroupOfNestedNode runs each row on the node itself and from its containers.
func TestCgroupOfNestedNode(t *testing.T) {
	for _, row := range cgroupRows() {
		for _, from := range []string{"node", "hostPID", "host proc"} {
			t.Run(row.is+" from "+from, func(t *testing.T) {
				cg := newCgroup(t)
				must(t, os.MkdirAll(cg+"/pod/ctr", 0o755))
				must(t, os.Mkdir(cg+"/sibling", 0o755))
				id, err := CgroupID(cg)
				must(t, err)
				runStage(t, "cgroup node", spec{clone: node, nest: unix.CLONE_NEWCGROUP, cgroup: cg,
					arg: strings.Join([]string{row.is, from, strconv.FormatUint(id, 10), filepath.Base(cg)}, "|")})
			})
		}
	}
}

// cgroupArgs are what is handed down to the stages.
func cgroupArgs(t *testing.T) (row cgroupRow, from string, id uint64, name string) {
	f := strings.Split(stageArg(), "|")
	id, err := strconv.ParseUint(f[2], 10, 64)
	must(t, err)
	for _, r := range cgroupRows() {
		if r.is == f[0] {
			return r, f[1], id, f[3]
		}
	}
	t.Fatalf("no row %q", f[0])
	return
}

func stageCgroupNode(t *testing.T) {
	row, from, id, name := cgroupArgs(t)
	machine := v2Root(t)
	startNode(t)
	newRootFS(t)
	bind(t, machine, "/run/machine")
	mount(t, "x", "/sys/fs/cgroup", "tmpfs", 0, "")
	row.make(t)
	before := tableText(t)
	switch from {
	case "node":
		checkCgroup(t, row, id, "")
	case "hostPID":
		runStage(t, "cgroup container", spec{clone: unix.CLONE_NEWNS, nest: unix.CLONE_NEWCGROUP, cgroup: "/run/machine/" + name + "/pod/ctr", arg: stageArg()})
	case "host proc":
		runStage(t, "cgroup container", spec{clone: unix.CLONE_NEWNS | unix.CLONE_NEWPID, nest: unix.CLONE_NEWCGROUP, cgroup: "/run/machine/" + name + "/pod/ctr", arg: stageArg()})
	}
	if after := tableText(t); after != before {
		t.Errorf("mounts on the node were:\n%s\nare:\n%s", before, after)
	}
}

func stageCgroupContainer(t *testing.T) {
	row, from, id, _ := cgroupArgs(t)
	kind, prefix := hostProc, "/proc/1/root"
	if from == "host proc" {
		kind, prefix = freshProcAndHostProc, "/host/proc/1/root"
	}
	startContainer(t, "/run/containerd/fh/rootfs", kind, func(root string) {
		mount(t, "x", root+"/sys/fs/cgroup", "tmpfs", 0, "")
		mountV2(t, root+"/sys/fs/cgroup")
	})
	own, err := CgroupID(pureV2Path)
	must(t, err)
	if own == id {
		t.Fatal("the container's own cgroup2 shows the node's root")
	}
	checkCgroup(t, row, id, prefix)
	if row.path != "" && kind == hostProc {
		checkSiblings(t, prefix+row.path)
	}
	// Both ways to ask the kernel for the root of a cgroup namespace.
	for name, ask := range map[string]func() (uint64, error){"fsmount": namespaceRootID, "mount": namespaceRootIDByMount} {
		must(t, ns.Do(func() error {
			if got, err := ask(); got != own || err != nil {
				t.Errorf("%s: root %d, want %d (%v)", name, got, own, err)
			}
			return nil
		}))
	}
	in, sure, err := SelfIn(pureV2Path)
	if !in || !sure || err != nil {
		t.Errorf("in the container's own cgroup: %v %v %v", in, sure, err)
	}
}

// checkSiblings asks about cgroups of the node from inside a container's.
func checkSiblings(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]bool{"/pod": true, "/pod/ctr": true, "/sibling": false} {
		if in, sure, err := SelfIn(root + name); in != want || !sure || err != nil {
			t.Errorf("self in %s: %v %v %v", root+name, in, sure, err)
		}
	}
	if in, sure, err := contains(root+"/pod", "1"); in || !sure || err != nil {
		t.Errorf("pid 1 in the container's cgroup: %v %v %v", in, sure, err)
	}
}

// checkCgroup looks, mounts where that is needed, and undoes it.
func checkCgroup(t *testing.T, row cgroupRow, id uint64, prefix string) {
	t.Helper()
	var records []string
	c := Config{Record: func(kind instance.Kind, target, _ string) error {
		records = append(records, string(kind)+" "+target)
		return nil
	}}
	before := tableText(t)
	g, err := FindCgroup2(c)
	must(t, err)
	if tableText(t) != before {
		t.Error("looking changed the mounts")
	}
	if g.State != row.state {
		t.Fatalf("state %s, want %s: %+v", g.State, row.state, g)
	}
	for _, part := range row.says {
		if !anyContains(g.Warnings, part) {
			t.Errorf("nothing says %q in %q", part, g.Warnings)
		}
	}
	wantPath, mounted := row.path, g.State == CgroupNotMounted
	if mounted {
		wantPath = "/run/firsthop/cgroup"
		if !errors.Is(g.Err(), ErrAbsent) || len(g.Actions) == 0 {
			t.Errorf("not mounted: %v, %q", g.Err(), g.Actions)
		}
		g, err = EnsureCgroup2(t.Context(), c)
		must(t, err)
		if strings.Join(records, ", ") != "mkdir /run/firsthop, mkdir /run/firsthop/cgroup, mount /run/firsthop/cgroup" || g.State != CgroupElsewhere {
			t.Errorf("recorded %q: %+v", records, g)
		}
	}
	if g.Path != prefix+wantPath || g.ID != id || !g.IsTrueRoot || !g.Sure || g.Err() != nil {
		t.Errorf("found %+v, want id %d at %s", g, id, prefix+wantPath)
	}
	again, err := EnsureCgroup2(t.Context(), c)
	must(t, err)
	if len(again.Actions) > 0 || again.ID != id {
		t.Errorf("the second time: %+v", again)
	}
	if in, sure, err := SelfIn(g.Path); !in || !sure || err != nil {
		t.Errorf("self in %s: %v %v %v", g.Path, in, sure, err)
	}
	checkOwn(t, g.Path)
	n := len(records)
	must(t, UnmountCgroup2(t.Context(), c, ""))
	must(t, UnmountCgroup2(t.Context(), c, ""))
	if mounted != (len(records) == n+1) {
		t.Errorf("unmount recorded %q", records[n:])
	}
	if tableText(t) != before {
		t.Error("the mounts are not what they were")
	}
}

// A pod with hostPID in kind that may look at pid 1 but enter nothing.
func TestCgroupWithoutSetns(t *testing.T) {
	cg := newCgroup(t)
	must(t, os.MkdirAll(cg+"/pod/ctr", 0o755))
	id, err := CgroupID(cg)
	must(t, err)
	runStage(t, "cgroup unsure", spec{clone: node, nest: unix.CLONE_NEWCGROUP, cgroup: cg, arg: fmt.Sprintf("%d|%s", id, filepath.Base(cg))})
}

func stageCgroupUnsure(t *testing.T) {
	arg, name, _ := strings.Cut(stageArg(), "|")
	if name != "" {
		machine := v2Root(t)
		startNode(t)
		mount(t, "x", "/run", "tmpfs", 0, "")
		bind(t, machine, "/run/machine")
		mount(t, "x", "/sys/fs/cgroup", "tmpfs", 0, "")
		mountV2(t, pureV2Path)
		runStage(t, "cgroup unsure", spec{clone: unix.CLONE_NEWNS, nest: unix.CLONE_NEWCGROUP, cgroup: "/run/machine/" + name + "/pod/ctr",
			drop: []int{unix.CAP_SYS_ADMIN}, arg: arg})
		return
	}
	g, err := EnsureCgroup2(t.Context(), Config{})
	must(t, err)
	if g.Path != "/proc/1/root"+pureV2Path || fmt.Sprint(g.ID) != arg || !g.IsTrueRoot || g.Sure || !anyContains(g.Warnings, "lacks CAP_SYS_ADMIN") {
		t.Errorf("found %+v, want id %s", g, arg)
	}
	if in, sure, err := SelfIn(g.Path); !in || !sure || err != nil {
		t.Errorf("in the node's root: %v %v %v", in, sure, err)
	}
	if in, sure, err := SelfIn(g.Path + "/pod"); in || sure || err != nil {
		t.Errorf("in a cgroup whose name cannot be known: %v %v %v", in, sure, err)
	}
	if dirs, err := OwnCgroups(g.Path); !slices.Equal(dirs, []string{g.Path}) || err != nil {
		t.Errorf("our own cgroup, whose name cannot be known: %q, %v", dirs, err)
	}
	_, err = EnsureBPFFS(t.Context(), Config{})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "setns /proc/1/ns/mnt") || !strings.Contains(err.Error(), "lacks CAP_SYS_ADMIN") {
		t.Errorf("bpffs: %v", err)
	}
}

// A machine that mounts no cgroup2 (RHEL 8), in the initial cgroup namespace.
func TestCgroupTop(t *testing.T) { runStage(t, "cgroup top", spec{clone: node}) }

func stageCgroupTop(t *testing.T) {
	machine := v2Root(t)
	startNode(t)
	mount(t, "x", "/run", "tmpfs", 0, "")
	g, err := FindCgroup2(Config{})
	must(t, err)
	if g.Path != machine || !IsTopCgroup(g.ID) || !g.Sure || !g.IsTrueRoot {
		t.Errorf("machine: %+v", g)
	}
	mount(t, "x", "/sys/fs/cgroup", "tmpfs", 0, "")
	g, err = EnsureCgroup2(t.Context(), Config{RunDir: "/run/other"})
	must(t, err)
	if g.Path != "/run/other/cgroup" || !IsTopCgroup(g.ID) || !g.Sure {
		t.Errorf("mounted: %+v", g)
	}
	// Another process that did not see it in time mounts it once more.
	must(t, mountCgroup2(ownView(), Config{}, g.HostPath, "", trueRoot{}))
	if n := countType(t, "/proc/self", "cgroup2", g.HostPath); n != 1 {
		t.Errorf("%d mounts", n)
	}
	must(t, UnmountCgroup2(t.Context(), Config{RunDir: "/run/other"}, ""))
	must(t, UnmountCgroup2(t.Context(), Config{RunDir: "/run/other"}, ""))
}

func TestCgroupGiven(t *testing.T) {
	cg := newCgroup(t)
	root := v2Root(t)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o644))
	v1 := v1Directory(t)
	for _, row := range []struct {
		is, path string
		state    CgroupState
		err      error
		root     bool
	}{
		{"a cgroup below the root", cg, CgroupGiven, nil, false},
		{"the true root", root, CgroupGiven, nil, true},
		{"a v1 hierarchy", v1, CgroupV1, ErrCgroup1, false},
		{"an ordinary directory", filepath.Dir(file), CgroupWrongType, ErrNotCgroup, false},
		{"a file", file, CgroupWrongType, ErrNotCgroup, false},
		{"nothing", cg + "/none", CgroupNoDirectory, ErrNoDirectory, false},
	} {
		t.Run(row.is, func(t *testing.T) {
			if row.path == "" {
				t.Skip("this machine has no cgroup v1")
			}
			g, err := EnsureCgroup2(t.Context(), Config{Path: row.path, Explicit: true})
			if !errors.Is(err, row.err) || (err == nil) != (row.err == nil) {
				t.Fatalf("%v, want %v", err, row.err)
			}
			if g.State != row.state || g.IsTrueRoot != row.root || len(g.Actions) > 0 {
				t.Errorf("%+v", g)
			}
			if err == nil && !row.root && !anyContains(g.Warnings, "not served") {
				t.Errorf("warns %q", g.Warnings)
			}
		})
	}
	if _, err := FindCgroup2(Config{Path: "relative", Explicit: true}); err == nil {
		t.Error("a relative path is accepted")
	}
}

func v1Directory(t *testing.T) string {
	table, err := ownView().mounts(typeIs("cgroup"))
	must(t, err)
	if len(table) == 0 {
		return ""
	}
	return table[0].Point
}

// TestCgroupWarnsOfMachine: a node that is a container and in the machine's own cgroup namespace serves all of the machine.
func TestCgroupWarnsOfMachine(t *testing.T) {
	for _, tc := range []struct {
		name  string
		host  Host
		state CgroupState
		want  bool
	}{
		{"a machine", Host{topCgroup: true}, CgroupPureV2, false},
		{"a node in its own cgroup namespace", Host{container: true}, CgroupPureV2, false},
		{"a node in the machine's", Host{container: true, topCgroup: true}, CgroupHybrid, true},
		{"where it is to be mounted", Host{container: true, topCgroup: true}, CgroupNotMounted, true},
		{"where it can't be used anyway", Host{container: true, topCgroup: true}, "", false},
	} {
		g := Cgroup2{State: tc.state}
		g.warnOfMachine(&tc.host)
		if got := strings.Contains(strings.Join(g.Warnings, ""), "the whole machine is served"); got != tc.want {
			t.Errorf("%s: warnings %q", tc.name, g.Warnings)
		}
	}
	if got, _ := cgroup2Path("12:cpu:/x\n0::/docker/1\n"); got != "/docker/1" {
		t.Errorf("its cgroup is %q", got)
	}
}

// What the kernel refuses to say of a cgroup is not that there is none.
func TestFindCgroup2SaysRefusal(t *testing.T) {
	for _, errno := range []string{"EPERM", "ENOSYS"} {
		runStage(t, "handle refused", spec{clone: node, arg: errno})
	}
}

func stageHandleRefused(t *testing.T) {
	v2Root(t)
	startNode(t)
	errno, says := unix.EPERM, []string{"name_to_handle_at", "seccomp"}
	if stageArg() == "ENOSYS" {
		errno, says = unix.ENOSYS, []string{"name_to_handle_at", "CONFIG_FHANDLE"}
	}
	must(t, lab.Refuse(lab.Refusal{Call: unix.SYS_NAME_TO_HANDLE_AT, Errno: errno}))
	g, err := FindCgroup2(Config{})
	if err == nil {
		err = g.Err()
	}
	if err == nil || errors.Is(err, ErrAbsent) || errors.Is(err, ErrRefused) != (errno == unix.EPERM) {
		t.Fatalf("%+v, %v", g, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("it does not say %q: %v", s, err)
		}
	}
}

func BenchmarkFindCgroup2(b *testing.B) {
	for b.Loop() {
		if g, err := FindCgroup2(Config{}); err != nil || g.Err() != nil {
			b.Fatal(err, g.Err())
		}
	}
}

func TestHierarchyOptions(t *testing.T) {
	if o := hierarchyOptions([]Mount{{Super: "rw,nsdelegate,memory_recursiveprot"}}); o != "nsdelegate,memory_recursiveprot" {
		t.Error(o)
	}
}
