package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/kernel/sockdiag"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// The process that holds a socket when it is to be moved: what was found earlier may be wrong by then.
func TestMoveFindsTheHolder(t *testing.T) {
	for what, calls := range map[string][]string{
		"its descriptor has another number": {"dup"},
		"another process has inherited it":  {"handover"},
		"both, several times":               {"handover", "dup", "handover"},
	} {
		t.Run(what, func(t *testing.T) {
			n := newNode(t)
			r := n.reconciler()
			a := open(t, n.addPod(1), "udp4", 0)
			a.connects(vip4)
			r.lead(1)
			if st := r.step(0); st.Moved != 1 {
				t.Fatalf("%+v", st)
			}
			for _, call := range calls {
				a.want("ok", "%s", call)
			}
			r.lead(0)
			r.step(0)
			if st := r.step(0); st.Moved != 2 || st.EndedUDP != 0 {
				t.Errorf("%+v: want it moved once more", st)
			}
			a.want(vip4, "peer")
			if got := a.exchange(); got != name(0) {
				t.Errorf("answered by %s", got)
			}
		})
	}
}

// The number of a descriptor that was closed is used again, at once.
func TestMoveFindsTheHolderByANumberThatAnotherSocketHad(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	a := open(t, n.addPod(1), "udp4", 0)
	a.connects(vip4)
	r.lead(1)
	if st := r.step(0); st.Moved != 1 {
		t.Fatalf("%+v", st)
	}
	a.want("ok", "reopen")
	a.connects(vip4)
	r.lead(0)
	r.step(0)
	if st := r.step(goneTime); st.Moved != 2 || st.EndedUDP != 0 {
		t.Errorf("%+v: want it moved, too", st)
	}
	if got := a.exchange(); got != name(0) {
		t.Errorf("answered by %s", got)
	}
}

// A socket that is on its way in a message belongs to nobody.
func TestMoveOfASocketInFlight(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	a.want("ok", "fly")
	r.lead(1)
	if st := r.step(0); st.Counts != (Counts{}) {
		t.Errorf("at once: %+v", st)
	}
	if st := r.step(goneTime); st.EndedUDP != 1 {
		t.Errorf("after a second: %+v", st)
	}
	a.want("ok", "land")
	a.want("ECONNABORTED", "peek")
}

// Of several sockets with one port, each is judged by its own peer.
func TestMoveOfAReuseportGroup(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	var all []*app
	for range 4 {
		all = append(all, openKind(t, n.l, "udp4 reuseport", "0.0.0.0:40000"))
	}
	all[0].want("ok", "connect %s", vip4)
	all[1].want("ok", "connect %s", backend4(0))
	r.lead(1)
	if st := r.step(0); st.Moved != 1 {
		t.Errorf("%+v", st)
	}
	all[0].want(vip4, "peer")
	if got := all[0].exchange(); got != name(1) {
		t.Errorf("answered by %s", got)
	}
	all[1].want(backend4(0).String(), "peer")
	for _, a := range all[2:] {
		a.want("ENOTCONN", "peer")
	}
}

// waitNowhere leads a client's socket nowhere, as programs do with one whose Service has no backend.
func (n *node) waitNowhere(a *app, vip string) {
	n.t.Helper()
	at := netip.MustParseAddrPort(vip)
	to := bpf.Nowhere(at.Addr().Is4())
	a.want("ok", "connect %s", to)
	n.noteWay(a, to, at)
}

// noteWay writes a way back of a client's socket.
func (n *node) noteWay(a *app, backend, frontend netip.AddrPort) {
	n.t.Helper()
	var cookie uint64
	_, err := fmt.Sscan(a.do("cookie"), &cookie)
	must(n.t, err)
	must(n.t, n.maps.Map(bpf.MapUDPSockRevNat).Put(
		bpf.UDPRevNatKey{Cookie: cookie, Backend: bpf.AddressOf(backend.Addr()), Port: bpf.PortOf(backend.Port())},
		bpf.UDPRevNat{Frontend: bpf.AddressOf(frontend.Addr()), Port: bpf.PortOf(frontend.Port()), Index: 1}))
}

// A socket that connected while its Service had no backend works once there is one.
func TestMoveOfWaitingSockets(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.lead()
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	all = append(all, n.clientsOf([]clients.Machine{n.l}, "udp", 41000)...)
	for _, c := range all {
		n.waitNowhere(c.app, c.vip)
		c.want(c.vip, "peer")
	}
	for _, later := range []time.Duration{0, goneTime, interval} {
		if st := r.step(later); st.Counts != (Counts{}) {
			t.Errorf("while there is no backend: %+v", st)
		}
	}
	r.lead(1)
	if st := r.step(0); st.Moved != uint64(len(all)) || st.Left != 0 {
		t.Errorf("%+v, want %d moved", st, len(all))
	}
	for _, c := range all {
		c.do("peek") // what the loopback said meanwhile, if anything
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
		c.want(c.vip, "peer")
	}
	before := n.ways()
	if r.step(lateTime); n.ways() != before-len(all) {
		t.Errorf("%d ways back were there, %d are left: want %d less", before, n.ways(), len(all))
	}
}

// One that is bound to a loopback address can't reach any backend: it stays where it does no harm.
func TestMoveLeavesWhatIsBoundToLoopback(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.lead()
	a := openKind(t, n.addPod(1), "udp4", "127.0.0.1:40000")
	n.waitNowhere(a, vip4)
	r.lead(1)
	for _, later := range []time.Duration{0, goneTime, interval} {
		if st := r.step(later); st.Counts != (Counts{}) {
			t.Errorf("%v later: %+v", later, st)
		}
	}
	a.want(vip4, "peer")
}

// IPV6_ADDRFORM makes a socket of IPv4 of one that was listed as IPv6, which an address of IPv6 does not fit.
func TestMoveOfASocketThatHasAnotherFamily(t *testing.T) {
	lab.NeedsLinux(t, 5, 6, "sockets can't be copied")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must(t, err)
	must(t, unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:7001"))))
	var s sockdiag.Socket
	must(t, sockdiag.List(bpf.UDP, sockdiag.Connected(bpf.UDP), nil, func(found *sockdiag.Socket) {
		if found.Cookie() == cookie {
			s = *found
		}
	}))
	s.Family = unix.AF_INET6
	var c copier
	defer c.close()
	if _, err := move(nil, &c, s, holder{os.Getpid(), fd}, true, backend6(0), netip.MustParseAddrPort(vip6)); !errors.Is(err, errNotThere) {
		t.Error(err)
	}
}

func TestCopyTakesTheVerySocketOnly(t *testing.T) {
	lab.NeedsLinux(t, 5, 6, "sockets can't be copied")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must(t, err)
	var c copier
	files := openFiles(t)
	got, err := c.copy(holder{os.Getpid(), fd}, cookie)
	must(t, err)
	unix.Close(got)
	for what, wrong := range map[string]holder{
		"a file": {os.Getpid(), 0}, "no descriptor": {os.Getpid(), 1 << 20}, "no process": {1 << 30, fd},
	} {
		if _, err := c.copy(wrong, cookie); !errors.Is(err, errNoCopy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.copy(holder{os.Getpid(), fd}, cookie+1); !errors.Is(err, errNoCopy) {
		t.Errorf("another socket: %v", err)
	}
	c.close()
	if now := openFiles(t); now != files {
		t.Errorf("%d files are open, before it were %d", now, files)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestExplainCopy(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		is   []error
	}{
		{"a kernel without it", unix.ENOSYS, []error{ErrCannotMove, unix.ENOSYS}},
		{"no right", unix.EPERM, []error{privileges.ErrRefused, unix.EPERM}},
		{"the process is gone", unix.ESRCH, []error{errNoCopy}},
		{"the descriptor is closed", unix.EBADF, []error{errNoCopy}},
	} {
		for _, is := range tc.is {
			if got := explainCopy("pidfd_getfd", holder{1, 2}, tc.err); !errors.Is(got, is) {
				t.Errorf("%s: %v", tc.name, got)
			}
		}
	}
}

// withoutPtrace starts this process anew, without the right to look into others.
func withoutPtrace() error {
	runtime.LockOSThread() // bounding sets are a thread's own
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0); err != nil {
		return err
	}
	return errors.Join(os.Setenv(childEnv, "reconcile"), unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// reconcileApart is a process that reconciles what a lab's node has, now and after a second, and says what came of it.
func reconcileApart(bpffs string) string {
	maps, err := bpf.OpenMaps(bpf.PinsBelow(bpffs), false)
	if err != nil {
		return err.Error()
	}
	n := &node{maps: maps}
	ahead := time.Duration(0)
	r := New(Config{Log: discard, Namespaces: netns.Config{}, Maps: func() (Maps, error) { return n.sockMaps(), nil }})
	r.pause = func(time.Duration) time.Duration { return 0 }
	r.now = func() time.Time { return time.Now().Add(ahead) }
	r.patience, r.quickTime = time.Minute, time.Minute
	r.Set(dns, ports(1))
	r.Begin()
	r.Done(nil)
	fmt.Println("ready")
	var seen []Counts
	for _, later := range []time.Duration{0, goneTime, goneTime} {
		ahead += later
		r.look(background)
		seen = append(seen, r.Status().Counts)
	}
	return fmt.Sprintf("%+v, move error: %v", seen, r.Status().MoveError)
}

func TestMoveWithoutTheRight(t *testing.T) {
	n := newNode(t)
	a := open(t, n.l, "udp4", 0)
	a.connects(vip4)
	n.serve(1)
	helper := openKind(t, n.l, "reconcile without ptrace", n.l.BPFFS)
	if got := helper.end(); got != "ready" {
		t.Fatal(got)
	}
	got := helper.end()
	for _, want := range []string{"[{Moved:0 EndedUDP:0 EndedTCP:0} {Moved:0 EndedUDP:1 EndedTCP:0}", "lacks CAP_SYS_PTRACE"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s: want %q in it", got, want)
		}
	}
	a.want("ECONNABORTED", "peek")
}

// On Debian's 5.10, a process that may not look at another's namespaces sees a directory of /proc instead.
func TestSameProcesses(t *testing.T) {
	for what, tc := range map[string]struct {
		process1 string
		refused  bool
	}{
		"the host's":             {"/proc/self/ns/pid", false},
		"another container's":    {"/proc/self/ns/net", true}, // another inode of the same file system will do
		"one that can't be seen": {"/proc/self/ns", false},
	} {
		t.Run(what, func(t *testing.T) {
			proc := t.TempDir()
			must(t, os.MkdirAll(proc+"/1/ns", 0o755))
			must(t, os.Symlink(tc.process1, proc+"/1/ns/pid"))
			if err := sameProcesses(proc); (err != nil) != tc.refused {
				t.Errorf("%v", err)
			}
		})
	}
}

// Root of a container, without the rights that override modes of files: the descriptors of other users' processes are
// closed to it, whatever CAP_SYS_PTRACE allows.
func TestLookThroughOtherUsersProcesses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lab.Await(t, "the end of its exec, until when the files are root's", func() bool {
		var st unix.Stat_t
		return unix.Stat(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid), &st) == nil && st.Uid == 65534
	})
	for _, tc := range []struct {
		rights []int
		want   string
	}{
		{[]int{unix.CAP_SYS_PTRACE}, "lacks CAP_DAC_READ_SEARCH ("},
		{[]int{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, ""},
	} {
		err := ns.Do(func() error {
			header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
			for _, c := range tc.rights {
				data[c/32].Effective |= 1 << (c % 32)
				data[c/32].Permitted |= 1 << (c % 32)
			}
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			look := finder{proc: "/proc", wanted: map[uint32]uint64{1: 1}}
			look.process(cmd.Process.Pid, false)
			return look.refused
		})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("with %v: %v, want %q", tc.rights, err, tc.want)
		}
	}
}

// A runtime that is killed at any moment leaves each socket on a backend, old or new; the next one finds all.
func TestMoveIsCrashSafe(t *testing.T) {
	n := newNode(t)
	pod := n.addPod(1)
	var all []client
	for range 5 {
		all = append(all, n.clientsOf([]clients.Machine{pod}, "udp", 0)...)
	}
	for _, c := range all {
		c.connects(c.vip)
	}
	n.serve(1)
	for i := range 5 {
		helper := openKind(t, n.l, "reconcile", n.l.BPFFS)
		if got := helper.end(); got != "ready" {
			t.Fatal(got)
		}
		for range i { // at different moments of its work
			all[0].do("local")
		}
		must(t, helper.process.Kill())
		for _, c := range all {
			c.want(c.vip, "peer")
		}
	}
	n.reconciler().step(0)
	for _, c := range all {
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
	}
}

// An application that holds its socket's lock indefinitely keeps a thread, and nothing else.
func TestMoveOfASocketWhoseLockIsHeld(t *testing.T) {
	n := newNode(t)
	pod := n.addPod(1)
	r := n.reconciler()
	r.crew.limit = 200 * time.Millisecond
	var hostile []*app
	for range workers + maxHungEach {
		a := open(t, pod, "udp4", 0)
		a.connects(vip4)
		hostile = append(hostile, a)
	}
	others := n.clientsOf([]clients.Machine{n.l, n.addPod(2)}, "udp", 0)
	for _, c := range others {
		c.connects(c.vip)
	}
	r.lead(0, 1) // all are found
	for _, a := range hostile {
		if got := a.do("hold"); got != "ok" {
			t.Fatal("cannot hold the lock of a socket: ", got)
		}
	}
	r.lead(1)
	r.step(0)
	st := r.step(goneTime)
	if st.Moved != uint64(len(others)) || st.Hung == 0 || st.Hung > maxHungEach+workers || st.Hung+st.Left != len(hostile) {
		t.Errorf("%+v: want %d moved, and some of %d hung, the others left", st, len(others), len(hostile))
	}
	for _, c := range others {
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
	}
	for _, a := range hostile {
		must(t, a.process.Kill())
	}
	lab.Await(t, "the threads", func() bool { return r.Status().Hung == 0 })
	for range 3 {
		st = r.step(interval)
	}
	if st.Hung != 0 || st.Left != 0 {
		t.Errorf("after its end: %+v", st)
	}
}

// From no backend to one and back, by the programs alone.
func TestMoveByThePrograms(t *testing.T) {
	n := newNode(t)
	r := n.reconciler()
	r.lead()
	all := n.clientsOf([]clients.Machine{n.l, n.addPod(1)}, "udp", 0)
	for _, c := range all {
		c.want("ok", "connect %s", c.vip)
		c.want(c.vip, "peer")
	}
	r.step(0)
	r.lead(1)
	if st := r.step(0); st.Moved != uint64(len(all)) {
		t.Fatalf("a backend came: %+v", st)
	}
	for _, c := range all {
		if got := c.exchange(); got != name(1) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
	}
	r.lead()
	if st := r.step(0); st.Moved != uint64(len(all)) {
		t.Errorf("within a second after it went: %+v", st)
	}
	if st := r.step(goneTime); st.Moved != uint64(2*len(all)) || st.EndedUDP != 0 {
		t.Errorf("a second later: %+v: want all led nowhere", st)
	}
	for _, c := range all {
		c.want(c.vip, "peer")
		c.do("send") // to the discard port, where nobody is
	}
	r.step(lateTime)
	r.lead(0)
	if st := r.step(0); st.Moved != uint64(3*len(all)) {
		t.Errorf("another came: %+v", st)
	}
	for _, c := range all {
		c.do("peek") // what the loopback said
		if got := c.exchange(); got != name(0) {
			t.Errorf("%s: answered by %s", c.name, got)
		}
		c.want(c.vip, "peer")
	}
}
