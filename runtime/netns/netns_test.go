package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/vishvananda/netlink"
)

const childEnv = "FIRSTHOP_NETNS_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	os.Exit(lab.RunMainInCgroup(m))
}

// child says what becomes of looking with fewer rights.
func child() {
	c := Config{Proc: os.Getenv(childEnv)}
	list, err := c.List()
	if err == nil {
		err = c.Visit(context.Background(), list, func(Namespace) bool { return true })
	}
	fmt.Printf("%v %v\n", errors.Is(err, ErrRefused), err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a lab as a machine of its own: its processes are those of a made-up /proc, whose files lead to real namespaces.
type host struct {
	t    testing.TB
	l    *lab.Lab
	c    Config
	pods []*lab.Pod
}

func newHost(t testing.TB, pods int) *host {
	t.Helper()
	h := &host{t: t, l: lab.New(t)}
	h.c = Config{Proc: filepath.Join(h.l.Dir, "proc"), Root: filepath.Join(h.l.Dir, "root")}
	must(t, os.MkdirAll(filepath.Join(h.c.Root, "run/netns"), 0o755))
	h.c.Host = h.l.Netns
	must(t, os.Mkdir(h.c.Proc, 0o755))
	for i := range pods {
		p, err := h.l.AddPod(fmt.Sprint("pod", i+1), netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)))
		must(t, err)
		h.pods = append(h.pods, p)
	}
	return h
}

// process makes a process of the host.
func (h *host) process(pid int, netns string) {
	h.t.Helper()
	dir := filepath.Join(h.c.Proc, strconv.Itoa(pid), "ns")
	must(h.t, os.MkdirAll(dir, 0o755))
	must(h.t, os.Symlink(netns, filepath.Join(dir, "net")))
}

// mount makes a bind mount of a namespace.
func (h *host) mount(path, netns string) string {
	h.t.Helper()
	path = filepath.Join(h.c.Root, path)
	must(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(h.t, os.WriteFile(path, nil, 0o600))
	must(h.t, unix.Mount(netns, path, "", unix.MS_BIND, ""))
	h.t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

func TestListFindsProcessesAndMounts(t *testing.T) {
	h := newHost(t, 3)
	h.process(10, h.l.Netns)
	for pid := 20; pid < 30; pid++ {
		h.process(pid, h.pods[0].Netns)
	}
	first := h.mount("run/netns/cni-1", h.pods[0].Netns)
	second := h.mount("run/netns/cni-2", h.pods[1].Netns)
	third := h.mount("var/run/netns/cni-3", h.pods[2].Netns)
	must(t, os.WriteFile(filepath.Join(h.c.Root, "run/netns/stale"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(h.c.Proc, "40"), 0o755)) // has just ended
	must(t, os.MkdirAll(filepath.Join(h.c.Proc, "sys/ns"), 0o755))
	list, err := h.c.List()
	must(t, err)
	if len(list) != 4 || !list[0].Host || list[0].Inode != inode(t, h.l.Netns) || !slices.Contains(list[0].Pids, 10) {
		t.Fatalf("found %+v, want the host and three pods", list)
	}
	for i, path := range []string{first, second, third} {
		at := slices.IndexFunc(list, func(ns Namespace) bool { return ns.Inode == inode(t, h.pods[i].Netns) })
		if at < 0 || !slices.Equal(list[at].Paths, []string{path}) || list[at].Host {
			t.Errorf("pod %d, mounted at %s: %+v", i+1, path, list)
		} else if want := map[bool]int{true: maxPids}[i == 0]; len(list[at].Pids) != want {
			t.Errorf("pod %d: processes %v, want %d", i+1, list[at].Pids, want)
		}
	}
}

// On the running system, /var/run is a link to /run: with a Root it would lead out of it.
func TestListFollowsNoLink(t *testing.T) {
	h := newHost(t, 1)
	h.mount("elsewhere/netns/cni-1", h.pods[0].Netns)
	must(t, os.Mkdir(filepath.Join(h.c.Root, "var"), 0o755))
	must(t, os.Symlink(filepath.Join(h.c.Root, "elsewhere"), filepath.Join(h.c.Root, "var/run")))
	if list, err := h.c.List(); err != nil || len(list) != 1 {
		t.Errorf("found %+v, %v: want the host alone", list, err)
	}
}

func TestListOfTheRunningSystem(t *testing.T) {
	h := newHost(t, 1)
	cmd := h.pods[0].Command(t.Context(), "sleep", "60")
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	list, err := Config{}.List()
	must(t, err)
	if !list[0].Host || list[0].Inode != inode(t, "/proc/self/ns/net") {
		t.Errorf("the host: %+v", list[0])
	}
	want := inode(t, h.pods[0].Netns)
	at := slices.IndexFunc(list, func(ns Namespace) bool { return ns.Inode == want })
	if at < 0 || !slices.Contains(list[at].Pids, cmd.Process.Pid) || !slices.Contains(list[at].Paths, h.pods[0].Netns) {
		t.Errorf("the pod: %+v", list)
	}
}

func TestVisitLooksFromInside(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be read")
	for name, byProgram := range map[string]bool{"cookies by what the kernel has": false, "cookies by a program": true} {
		own := []string{lab.MainCgroup(t)}
		cookies := natinit.NewCookies(natinit.CookiesConfig{
			Features: bpf.Features(lab.KernelFeatures()), NoOption: byProgram, Cgroups: func() ([]string, error) { return own, nil },
		})
		t.Run(name, func(t *testing.T) { lookFromInside(t, cookies.Cookie) })
		must(t, cookies.Close())
	}
}

func lookFromInside(t *testing.T, tell func() (uint64, error)) {
	h := newHost(t, 2)
	h.process(20, h.pods[0].Netns)
	h.mount("run/netns/cni-2", h.pods[1].Netns)
	want := map[uint64]string{}
	for i, p := range h.pods {
		must(t, p.Do(func() error {
			cookie, err := tell()
			want[cookie] = fmt.Sprintf("[198.51.100.%d 2001:db8:1::%d]", i+1, i+1)
			return err
		}))
	}
	list, err := h.c.List()
	must(t, err)
	seen := map[uint64]string{}
	err = h.c.Visit(t.Context(), list, func(ns Namespace) bool {
		cookie, err := tell()
		if err != nil || cookie == 0 {
			t.Error(cookie, err)
		}
		addrs, err := Addrs()
		if err != nil {
			t.Error(err)
		}
		if !ns.Host {
			seen[cookie] = fmt.Sprint(addrs)
		}
		return true
	})
	must(t, err)
	if len(seen) != 2 || fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("saw %v, want %v", seen, want)
	}
}

func TestVisitEnds(t *testing.T) {
	h := newHost(t, 3)
	for i, p := range h.pods {
		h.process(20+i, p.Netns)
	}
	list, err := h.c.List()
	must(t, err)
	visits := 0
	must(t, h.c.Visit(t.Context(), list, func(Namespace) bool { visits++; return visits < 2 }))
	if visits != 2 {
		t.Errorf("%d visits, want two", visits)
	}
	ctx, cancel := context.WithCancel(t.Context())
	visits = 0
	err = h.c.Visit(ctx, list, func(Namespace) bool { visits++; cancel(); return true })
	if visits != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d visits after the context's end, %v", visits, err)
	}
}

func TestVisitSkipsWhatIsGone(t *testing.T) {
	h := newHost(t, 2)
	h.process(20, h.pods[0].Netns)
	h.process(21, h.pods[1].Netns)
	list, err := h.c.List()
	must(t, err)
	// The process has ended, and the next one that got its number is another pod's.
	must(t, os.RemoveAll(filepath.Join(h.c.Proc, "20")))
	h.process(20, h.pods[1].Netns)
	list = append(list, Namespace{Inode: 1, Pids: []int{77}}, Namespace{Inode: inode(t, "/proc/self/ns/mnt"), Paths: []string{"/proc/self/ns/mnt"}})
	var seen []uint64
	must(t, h.c.Visit(t.Context(), list, func(ns Namespace) bool {
		if now := inode(t, "/proc/thread-self/ns/net"); now != ns.Inode {
			t.Errorf("the visit of %+v is in net:[%d]", ns, now)
		}
		seen = append(seen, ns.Inode)
		return true
	}))
	if want := []uint64{inode(t, h.l.Netns), inode(t, h.pods[1].Netns)}; !slices.Equal(seen, want) {
		t.Errorf("visited %v, want %v", seen, want)
	}
}

// threadsAway are the threads of this process that are in a foreign network namespace, as the lab's own are.
func threadsAway(t testing.TB) []string {
	t.Helper()
	home := inode(t, "/proc/self/ns/net")
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	must(t, err)
	return slices.DeleteFunc(tasks, func(task string) bool {
		var st unix.Stat_t
		return unix.Stat(task, &st) != nil || st.Ino == home
	})
}

// wantThreadsAtHome asks that no more threads are away than before.
func wantThreadsAtHome(t testing.TB, before []string) {
	t.Helper()
	lab.Await(t, "no thread stays in a foreign network namespace", func() bool { // one that ends is still listed for an instant
		return !slices.ContainsFunc(threadsAway(t), func(task string) bool { return !slices.Contains(before, task) })
	})
}

func TestVisitLeavesNoThreadAway(t *testing.T) {
	h := newHost(t, 2)
	for i, p := range h.pods {
		h.process(20+i, p.Netns)
	}
	list, err := h.c.List()
	must(t, err)
	home, before, files := inode(t, "/proc/self/ns/net"), threadsAway(t), openFiles(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h.c.Visit(ctx, list, func(ns Namespace) bool {
				switch i % 4 {
				case 1:
					cancel()
				case 2:
					return false
				case 3:
					runtime.Goexit()
				}
				started := make(chan uint64)
				go func() { started <- inode(t, "/proc/thread-self/ns/net") }()
				if in := <-started; in != home {
					t.Errorf("a goroutine that a visit starts is in net:[%d]", in)
				}
				return true
			})
			if now := inode(t, "/proc/thread-self/ns/net"); now != home {
				t.Errorf("after the visit, the goroutine is in net:[%d]", now)
			}
		})
	}
	all.Wait()
	wantThreadsAtHome(t, before)
	if now := openFiles(t); now > files { // one would keep a pod's namespace alive
		t.Errorf("%d files are open, before it were %d", now, files)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestVisitNamesMissingCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tc := range []struct {
		name, proc, want string
		caps             []uintptr
	}{
		{"no right to look at others", othersProc(t), "CAP_SYS_PTRACE", []uintptr{unix.CAP_SYS_ADMIN}},
		{"no right to enter", t.TempDir(), "CAP_SYS_ADMIN", []uintptr{unix.CAP_SYS_PTRACE}},
		{"all rights", t.TempDir(), "false <nil>", []uintptr{unix.CAP_SYS_ADMIN}},
	} {
		exe := copySelf(t)
		must(t, os.Chmod(filepath.Dir(tc.proc), 0o755))
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), childEnv+"="+tc.proc)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: tc.caps}
		out, err := cmd.CombinedOutput()
		must(t, err)
		if got := string(out); !strings.Contains(got, tc.want) || strings.HasPrefix(got, "true") != strings.HasPrefix(tc.want, "CAP") {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// othersProc is a /proc with this process alone.
func othersProc(t testing.TB) string {
	t.Helper()
	proc, pid := t.TempDir(), strconv.Itoa(os.Getpid())
	must(t, os.Symlink(filepath.Join("/proc", pid), filepath.Join(proc, pid)))
	return proc
}

// copySelf puts the test binary where everyone may execute it.
func copySelf(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fh-netns-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	path := filepath.Join(dir, "self")
	must(t, os.WriteFile(path, exe, 0o755))
	return path
}

func TestListWithoutAHost(t *testing.T) {
	if list, err := (Config{Host: "/proc/self/ns/none"}).List(); !errors.Is(err, os.ErrNotExist) || list != nil {
		t.Errorf("found %v, %v", list, err)
	}
}

func TestAddrs(t *testing.T) {
	l := lab.New(t)
	must(t, l.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{"192.0.2.1/24", "192.0.2.2/24", "192.0.3.1/32", "2001:db8::1/128", "fe80::1/64"} {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		addrs, err := Addrs()
		got := slices.DeleteFunc(addrs, func(a netip.Addr) bool {
			return a.IsGlobalUnicast() && !strings.HasPrefix(a.String(), "192.0.") && !strings.HasPrefix(a.String(), "2001:db8::1") // the lab's own
		})
		if want := "[192.0.2.1 192.0.3.1 2001:db8::1 192.0.2.2]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %s: the second of a subnet is a secondary one", got, want)
		}
		return err
	}))
}
