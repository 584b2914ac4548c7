package hostproc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestUnitOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/kubelet.service\n":                                                             "kubelet",
		"0::/kube.slice/kube-node.slice/kubelet.service\n":                                               "kubelet",
		"0::/../../system.slice/kubelet.service\n":                                                       "kubelet",
		"0::/system.slice/k3s.service/init\n":                                                            "k3s",
		"11:memory:/x\n1:name=systemd:/system.slice/kubelet.service\n0::/system.slice/kubelet.service\n": "kubelet",
		"1:name=systemd:/system.slice/kubelet.service\n0::/\n":                                           "kubelet",
		"0::/system.slice/snap.microk8s.daemon-kubelite.service\n":                                       "snap.microk8s.daemon-kubelite",
		"0::/user.slice/user-1000.slice/user@1000.service/kubelet.service\n":                             "user@1000",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/kubelet.service\n":                   "user@1000",
		"0::/kubepods.slice/kubepods-podx.slice/cri-containerd-1.scope/kubelet.service\n":                "",
		"0::/kubepods/pod1/2/kubelet.service\n":                                                          "",
		"0::/docker/1/system.slice/kubelet.service\n":                                                    "",
		"0::/system.slice/docker-0123.scope\n":                                                           "",
		"0::/\n":                                                                                         "",
		"":                                                                                               "",
		"1:name=systemd:/user.slice/user-0.slice/session-1.scope/kubelet.service\n0::/system.slice/a.service\n": "",
	} {
		if got := unitOf(cgroupOf(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestPodOf(t *testing.T) {
	const uid = "1b2c3d4e-0000-4000-8000-123456789abc"
	for text, want := range map[string]string{
		"0::/kubepods/burstable/pod" + uid + "/0123\n": uid,
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1b2c3d4e_0000_4000_8000_123456789abc.slice/cri-containerd-1.scope\n": uid,
		"11:pids:/kubepods/pod" + uid + "/01\n0::/\n": uid,
		"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1b2c3d4e_0000_4000_8000_123456789abc.slice/x.scope\n": uid,
		"0::/kubepods/pod5b1e4f0a0f9d4c7a8a1b2c3d4e5f6071/01\n":                                                             "5b1e4f0a0f9d4c7a8a1b2c3d4e5f6071",
		"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod" + uid + "\n":                                        "",
		"0::/kubepods/pod5b1e4f0a0f9d4c7a8a1b2c3d4e5f6071/01/pod" + uid + "\n":                                              "5b1e4f0a0f9d4c7a8a1b2c3d4e5f6071",
		"0::/system.slice/a.service\n": "",
	} {
		if got := podOf(cgroupOf(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// fakeProc is a /proc with one process, as the kernel words it.
func fakeProc(t *testing.T, files map[string]string) Config {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Config{Root: root}
}

func statusOf(uids string, parent int, nspid string) string {
	return fmt.Sprintf("Name:\tkubelet\nState:\tS (sleeping)\nPPid:\t%d\nUid:\t%s\nNSpid:\t%s\n", parent, uids, nspid)
}

func TestUnitsTrustsMainProcessesOfRoot(t *testing.T) {
	const unit = "0::/system.slice/kubelet.service\n"
	for name, tc := range map[string]struct {
		cgroup, status string
		want           bool
	}{
		"systemd's kubelet":                        {unit, statusOf("0 0 0 0", 1, "77"), true},
		"another user":                             {unit, statusOf("1000 1000 1000 1000", 1, "77"), false},
		"a setuid program":                         {unit, statusOf("1000 0 0 0", 1, "77"), false},
		"a child, as of a mount with an option":    {unit, statusOf("0 0 0 0", 50, "77"), false},
		"another process-id namespace":             {unit, statusOf("0 0 0 0", 1, "77 1"), false},
		"root in a user's unit":                    {"0::/user.slice/user-1000.slice/user@1000.service/kubelet.service\n", statusOf("0 0 0 0", 1, "77"), false},
		"root in a container":                      {"0::/kubepods/pod1b2c3d4e-0000-4000-8000-123456789abc/1\n", statusOf("0 0 0 0", 1, "77"), false},
		"a zombie":                                 {unit, strings.Replace(statusOf("0 0 0 0", 1, "77"), "S (sleeping)", "Z (zombie)", 1), false},
		"a status that says nothing about its ids": {unit, "Name:\tkubelet\nPPid:\t1\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeProc(t, map[string]string{"proc/77/cgroup": tc.cgroup, "proc/77/status": tc.status, "proc/77/cmdline": "kubelet\x00-v\x00"})
			found, err := c.Units("kubelet")
			if err != nil || (len(found) == 1) != tc.want {
				t.Fatalf("%+v, %v", found, err)
			}
			if tc.want && !slices.Equal(c.Args(found[0]), []string{"kubelet", "-v"}) {
				t.Errorf("arguments %q", c.Args(found[0]))
			}
		})
	}
}

func TestUnitsLooksAtChildrenOfInitWhereTheKernelListsThem(t *testing.T) {
	const unit = "0::/system.slice/kubelet.service\n"
	files := map[string]string{"proc/77/cgroup": unit, "proc/77/status": statusOf("0 0 0 0", 1, "77"), "proc/78/cgroup": unit, "proc/78/status": statusOf("0 0 0 0", 77, "78")}
	for children, want := range map[string]int{"": 0, "12 77 ": 1, "78 77 77 ": 1, "12 ": 0} {
		files["proc/1/task/1/children"] = children
		found, err := fakeProc(t, files).Units("kubelet")
		if err != nil || len(found) != want {
			t.Errorf("children %q: %+v, %v, want %d", children, found, err, want)
		}
	}
}

func TestUnitsReadsPIDFilesOfOpenRC(t *testing.T) {
	now := time.Now().Unix()
	stat := func(started int64) string {
		return "77 (a) b) S 1 " + strings.Repeat("0 ", 17) + strconv.FormatInt(started*userHZ, 10) + " 0"
	}
	boot := "cpu 1\nbtime " + strconv.FormatInt(now-1000, 10) + "\n"
	for name, tc := range map[string]struct {
		files map[string]string
		want  []int
	}{
		"in the background": {map[string]string{"run/kubelet.pid": "77\n", "proc/77/status": statusOf("0 0 0 0", 1, "77")}, []int{77}},
		"supervised": {map[string]string{"run/supervise-kubelet.pid": "77\n", "proc/77/status": statusOf("0 0 0 0", 1, "77"),
			"proc/80/status": statusOf("0 0 0 0", 77, "80"), "proc/81/status": statusOf("1000 1000 1000 1000", 77, "81"), "proc/82/status": statusOf("0 0 0 0", 80, "82")}, []int{77, 80}},
		"a user's process has the number now": {map[string]string{"run/kubelet.pid": "77\n", "proc/77/status": statusOf("1000 1000 1000 1000", 1, "77"), "proc/80/status": statusOf("0 0 0 0", 77, "80")}, nil},
		"a younger process has the number":    {map[string]string{"run/kubelet.pid": "77\n", "proc/77/status": statusOf("0 0 0 0", 1, "77"), "proc/77/stat": stat(2000)}, nil},
		"no number":                           {map[string]string{"run/kubelet.pid": "x\n"}, nil},
		"process 1":                           {map[string]string{"run/kubelet.pid": "1\n", "proc/1/status": statusOf("0 0 0 0", 0, "1")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"run/openrc/softlevel": "", "proc/stat": boot, "proc/77/stat": stat(10), "proc/1/stat": stat(0)}
			for k, v := range tc.files {
				files[k] = v
			}
			c := fakeProc(t, files)
			found, err := c.Units("kubelet")
			if err != nil {
				t.Fatal(err)
			}
			var pids []int
			for _, p := range found {
				pids = append(pids, p.PID)
			}
			if !slices.Equal(pids, tc.want) {
				t.Errorf("%v, want %v", pids, tc.want)
			}
			if err := os.Chmod(filepath.Join(c.Root, "run"), 0o777); err != nil {
				t.Fatal(err)
			}
			if found, err := c.Units("kubelet"); err != nil || len(found) > 0 {
				t.Errorf("believed a file that everybody may write: %+v, %v", found, err)
			}
		})
	}
}

// What the kernel says of a real process of a user, and of one of root that no unit has started.
func TestUnitsIgnoresNames(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a process of another user")
	}
	for _, user := range []string{"65534", "0"} {
		cmd := exec.Command("setpriv", "--reuid="+user, "--clear-groups", "sh", "-c", "printf kubelet >/proc/$$/comm; echo; read line", "kubelet", "--kubeconfig=/tmp/x")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		found, err := Config{}.Units("kubelet")
		if err != nil || slices.ContainsFunc(found, func(p Process) bool { return p.PID == cmd.Process.Pid }) {
			t.Errorf("a process of user %s: %+v, %v", user, found, err)
		}
		stdin.Close()
		_ = cmd.Wait()
	}
}

func TestPrintable(t *testing.T) {
	if got := Printable("ku\x1b[31mb\xffe é"); got != "ku?[31mb?e é" {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"0::/system.slice/kubelet.service\n", statusOf("0 0 0 0", 1, "77"), "12 (a) Z 1", "77 (a) b) S 1 0 0 0 -1 2129984", "btime 5\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		group := cgroupOf(text)
		if unit := unitOf(group); strings.Contains(unit, "/") {
			t.Errorf("unit %q", unit)
		}
		podOf(group)
		parseStatus(text)
		flagsOf(text)
		startTime(text, text)
	})
}
