package mounts

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
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

func TestDecodeHandle(t *testing.T) {
	old := make([]byte, 8)
	binary.NativeEndian.PutUint32(old, 57)
	binary.NativeEndian.PutUint32(old[4:], 3)
	now := make([]byte, 8)
	binary.NativeEndian.PutUint64(now, 1<<40|9)
	for _, row := range []struct {
		is   string
		kind int32
		b    []byte
		want uint64
	}{
		{"before 5.5: inode number and generation", fileIDIno32Gen, old, 3<<32 | 57},
		{"since 5.5: the id", fileIDKernfs, now, 1<<40 | 9},
		{"an unknown type", 0x81, now, 0},
		{"too short", fileIDKernfs, now[:7], 0},
	} {
		got, err := decodeHandle(row.kind, row.b)
		if got != row.want || (err == nil) != (row.want != 0) {
			t.Errorf("%s: %#x, %v", row.is, got, err)
		}
	}
	for id, want := range map[uint64]bool{1: true, 1<<32 | 1: true, 2: false, 2<<32 | 1: false, 1 << 32: false, 0: false} {
		if IsTopCgroup(id) != want {
			t.Errorf("IsTopCgroup(%#x) is %v", id, !want)
		}
	}
}

func TestPosition(t *testing.T) {
	for _, row := range []struct {
		is, root, rel, at string
		where             place
	}{
		{"a mount of the namespace's root", "/", "/a/b", "a/b", below},
		{"the process is in it", "/", "/", "", below},
		{"a mount of a cgroup above the process's", "/a", "/a/b", "b", below},
		{"a name that only begins alike", "/a", "/ab", "", outside},
		{"a mount of a cgroup below the process's", "/a/b", "/a", "", outside},
		{"a mount from further up, and we are in a namespace", "/../..", "/x", "", somewhereBelow},
		{"both from further up", "/../..", "/../../x/y", "x/y", below},
		{"the process is above the mount", "/..", "/../../x", "", outside},
		{"the mount is a sibling", "/../s", "/x", "", outside},
		{"the mount is a sibling, and the process in it", "/../s", "/../s/p", "p", below},
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

const tableSample = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 23 0:40 / /sys/fs/bpf rw,nosuid shared:7 master:2 - bpf bpf rw,mode=700
31 30 0:41 / /sys/fs/bpf ro - bpf firsthop-0a rw
32 27 0:42 / /mnt/a\040b\134c\043d rw - tmpfs none rw
`

func TestReadTable(t *testing.T) {
	all := func([]byte) bool { return true }
	mounts, err := readTable(strings.NewReader(tableSample), all)
	must(t, err)
	if len(mounts) != 4 || mounts[3].Point != `/mnt/a b\c#d` || !mounts[1].Shared || mounts[2].Shared || !mounts[2].Ours() || mounts[1].Ours() {
		t.Errorf("%+v", mounts)
	}
	one, err := readTable(strings.NewReader(tableSample), mountPointIs(`/mnt/a b\c#d`))
	if err != nil || len(one) != 1 {
		t.Errorf("%+v, %v", one, err)
	}
	stack, _ := stackAt(mounts, "/sys/fs/bpf", 0)
	if len(stack) != 2 || stack[0].ID != 31 || stack[1].ID != 30 {
		t.Errorf("%+v", stack)
	}
	// Known by its id, the lower one has nothing below it; the other is not in
	// its stack.
	stack, hidden := stackAt(mounts, "/sys/fs/bpf", 30)
	if len(stack) != 1 || len(hidden) != 1 || hidden[0].ID != 31 {
		t.Errorf("%+v, %+v", stack, hidden)
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add(tableSample)
	f.Add("1 1 0:1 / / rw - rootfs rootfs rw")
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\n")
	f.Fuzz(func(t *testing.T, data string) {
		mounts, err := readTable(strings.NewReader(data), func([]byte) bool { return true })
		if err != nil {
			return
		}
		for _, m := range mounts {
			stack, hidden := stackAt(mounts, m.Point, m.ID)
			if len(stack) == 0 || stack[0].Point != m.Point {
				t.Fatalf("mount %+v is not in its stack %+v, %+v", m, stack, hidden)
			}
		}
	})
}

func FuzzEscapePath(f *testing.F) {
	f.Add("/a b")
	f.Add("/x\\040\n#")
	f.Fuzz(func(t *testing.T, p string) {
		p = "/" + p
		line := "1 1 0:1 / " + escapePath(p) + " rw - t s rw\n"
		mounts, err := readTable(strings.NewReader(line), mountPointIs(p))
		if err != nil || len(mounts) != 1 || mounts[0].Point != p {
			t.Fatalf("%q became %+v, %v", p, mounts, err)
		}
	})
}

func FuzzPosition(f *testing.F) {
	f.Add("/../a", "/../a/b")
	f.Fuzz(func(t *testing.T, root, rel string) {
		at, where := position(root, rel)
		if where == below && len(at) > len(rel) {
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

func TestKubeletMark(t *testing.T) {
	const pods = "/var/lib/kubelet/pods/0f3b2c64-9a43-4a5b-8a3e-1f6d1f6a7b11"
	for _, row := range []struct {
		is   string
		m    Mount
		want bool
	}{
		{"a termination log", Mount{Root: "/x", Point: "/dev/termination-log"}, true},
		{"hosts from the pods directory", Mount{Root: pods + "/etc-hosts", Point: "/etc/hosts"}, true},
		{"a log at another path", Mount{Root: pods + "/containers/c/1a", Point: "/var/log/end"}, true},
		{"a kubelet elsewhere", Mount{Root: "/data" + pods + "/volumes/kubernetes.io~empty-dir/v", Point: "/v"}, true},
		{"a volume on the node itself", Mount{Root: pods + "/volumes/a", Point: pods + "/volumes/b"}, false},
		{"another directory called pods", Mount{Root: "/srv/pods/a/containers/x", Point: "/x"}, false},
		{"an ordinary mount", Mount{Root: "/", Point: "/"}, false},
	} {
		if got := kubeletMark([]Mount{row.m}) != ""; got != row.want {
			t.Errorf("%s: %v", row.is, got)
		}
	}
}

// Rule 2 of FindHost: the number of the first pid namespace settles it.
func TestJudgeInitOfTheMachine(t *testing.T) {
	for _, same := range []bool{true, false} {
		if sure, ok, reason := judgeInit("/none", namespaces{pid: initPIDNamespace}, same); !sure || !ok || reason == "" {
			t.Errorf("same %v: %v %v %q", same, sure, ok, reason)
		}
	}
	// Of any other nothing is known if its mount table cannot be read.
	if _, ok, reason := judgeInit("/none", namespaces{pid: "pid:[1]"}, false); ok || reason == "" {
		t.Errorf("%v %q", ok, reason)
	}
}

func TestFindRoot(t *testing.T) {
	own := []Mount{{ID: 9, Point: "/", Dev: "0:57", Root: "/"}}
	bound := []Mount{{ID: 9, Point: "/", Dev: "8:1", Root: "/snapshots/2/fs"}}
	for _, row := range []struct {
		is     string
		own    []Mount
		theirs Mount
		want   bool
	}{
		{"the same overlay", own, Mount{Dev: "0:57", Root: "/", Point: "/run/c/rootfs"}, true},
		{"another overlay", own, Mount{Dev: "0:58", Root: "/", Point: "/"}, false},
		{"the same directory of a disk", bound, Mount{Dev: "8:1", Root: "/snapshots/2/fs", Point: "/run/c/rootfs"}, true},
		{"another directory of the same disk", bound, Mount{Dev: "8:1", Root: "/snapshots/1/fs", Point: "/"}, false},
		{"no root of our own", nil, Mount{Dev: "8:1", Root: "/", Point: "/"}, false},
	} {
		if got := findRoot(row.own, []Mount{row.theirs}); got != row.theirs.Point && row.want || got != "" && !row.want {
			t.Errorf("%s: %q", row.is, got)
		}
	}
}

func TestParsers(t *testing.T) {
	if !inPIDNamespaceOf("Pid:\t5\nNSpid:\t5\n") || inPIDNamespaceOf("NSpid:\t5\t1\n") || inPIDNamespaceOf("") {
		t.Error("NSpid")
	}
	if o := hierarchyOptions([]Mount{{Super: "rw,nsdelegate,memory_recursiveprot"}}); o != "nsdelegate,memory_recursiveprot" {
		t.Error(o)
	}
	if s := BPFFSState(99).String() + CgroupState(99).String(); s != "BPFFSState(99)CgroupState(99)" {
		t.Error(s)
	}
}

// A symbolic link below a root never leads out of it.
func TestResolveStaysInside(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(root+"/a/b", 0o755))
	for link, to := range map[string]string{"abs": "/a/b", "up": "../../../a", "loop": "loop", "out": "/etc/passwd", "dots": "./a//b/../b/."} {
		must(t, os.Symlink(to, path.Join(root, link)))
	}
	v := view{prefix: root}
	for in, want := range map[string]string{
		"/abs": "/a/b", "/up/b": "/a/b", "/dots": "/a/b", "/a/../a/b/": "/a/b", "/": "/", "/../..": "/", "/loop": "", "/out": "", "/none": "",
	} {
		got, err := v.resolve(in)
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
}

// The lock is waited for no longer than the context allows.
func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(t.Context(), dir)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	unlock()
	unlock, err = lockDir(ctx, dir)
	must(t, err)
	unlock()
}
