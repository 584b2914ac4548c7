package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// startIn starts a process in a cgroup that ends with the test.
func startIn(t *testing.T, cgroup string) int {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command("sleep", "60")
	lab.IntoCgroup(cmd, dir)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // below 5.7 it joins after its start
		procs, err := os.ReadFile(cgroup + "/cgroup.procs")
		must(t, err)
		if strings.Contains("\n"+string(procs), fmt.Sprintf("\n%d\n", cmd.Process.Pid)) {
			return cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not come to %s", cmd.Process.Pid, cgroup)
		}
	}
}

func TestPosition(t *testing.T) {
	for _, row := range []struct {
		is, root, rel, at string
		where             place
	}{
		{"a mount of the namespace's root", "/", "/a/b", "a/b", inSubtree},
		{"the process is in it", "/", "/", "", inSubtree},
		{"a mount of a cgroup above the process's", "/a", "/a/b", "b", inSubtree},
		{"a name that only begins alike", "/a", "/ab", "", outside},
		{"a mount of a cgroup below the process's", "/a/b", "/a", "", outside},
		{"a mount from further up, and we are in a namespace", "/../..", "/x", "", inUnnamedSubtree},
		{"the same, and the name begins with dots", "/..", "/..x", "", inUnnamedSubtree},
		{"both from further up", "/../..", "/../../x/y", "x/y", inSubtree},
		{"the process is above the mount", "/..", "/../../x", "", outside},
		{"the mount is a sibling", "/../s", "/x", "", outside},
		{"the mount is a sibling, and the process in it", "/../s", "/../s/p", "p", inSubtree},
		{"the process is outside of the namespace", "/", "/../s", "", outside},
	} {
		at, where := position(row.root, row.rel)
		if at != row.at || where != row.where {
			t.Errorf("%s: %q, %v", row.is, at, where)
		}
	}
}

func TestCgroup2Path(t *testing.T) {
	for data, want := range map[string]string{
		"9:name=systemd:/\n0::/a/b\n": "/a/b",
		"0::/../x\n":                  "/../x",
		"0::/gone (deleted)\n":        "",
		"3:cpu:/x\n":                  "",
		"":                            "",
	} {
		if got, ok := cgroup2Path(data); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", data, got, ok)
		}
	}
}

func FuzzPosition(f *testing.F) {
	f.Add("/../a", "/../a/b")
	f.Fuzz(func(t *testing.T, root, rel string) {
		at, where := position(root, rel)
		if where == inSubtree && len(at) > len(rel) {
			t.Fatalf("%q below %q is %q", rel, root, at)
		}
	})
}

func FuzzCgroup2Path(f *testing.F) {
	f.Add("0::/a\n")
	f.Fuzz(func(t *testing.T, data string) {
		if p, ok := cgroup2Path(data); ok && !strings.HasPrefix(p, "/") {
			t.Fatalf("%q gave %q", data, p)
		}
	})
}

// checkOwn asks for this process's own cgroup, which is below the one at path.
func checkOwn(t *testing.T, path string) {
	t.Helper()
	dirs, err := OwnCgroups(path)
	if err != nil || len(dirs) == 0 || dirs[len(dirs)-1] != path || len(dirs) > 2 {
		t.Fatalf("our own cgroups from %s on: %q, %v", path, dirs, err)
	}
	procs, err := os.ReadFile(dirs[0] + "/cgroup.procs")
	if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(os.Getpid())) {
		t.Errorf("our own cgroup from %s on: %q with %q, %v", path, dirs, procs, err)
	}
}

func TestContains(t *testing.T) {
	cg := newCgroup(t)
	must(t, os.MkdirAll(cg+"/pod/ctr", 0o755))
	cmd := startIn(t, cg+"/pod")
	for _, row := range []struct {
		is, path string
		in       bool
	}{
		{"the root", v2Root(t), true},
		{"a cgroup above", cg, true},
		{"its own cgroup", cg + "/pod", true},
		{"a cgroup below", cg + "/pod/ctr", false},
	} {
		in, sure, err := contains(row.path, strconv.Itoa(cmd))
		if in != row.in || !sure || err != nil {
			t.Errorf("%s: %v %v %v", row.is, in, sure, err)
		}
	}
	if in, sure, err := SelfIn(cg); in || !sure || err != nil {
		t.Errorf("this process: %v %v %v", in, sure, err)
	}
	checkOwn(t, v2Root(t))
	if dirs, err := OwnCgroups(cg); len(dirs) > 0 || err != nil {
		t.Errorf("our own cgroup below another: %q, %v", dirs, err)
	}
	if _, _, err := SelfIn(t.TempDir()); !errors.Is(err, ErrNotCgroup) {
		t.Errorf("no cgroup: %v", err)
	}
}
