package workloads

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/lab"
)

func TestReconcilerOptsPodsOutAndIn(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true})
	r.SetFallback(true)
	a, b := ips(1), ips(2)
	podA, cookieA := m.addPod(1)
	podB, cookieB := m.addPod(2)
	m.start(podA)
	m.start(podB)
	f.table = optedOut(map[uint64]bpf.Workload{cookieA: out(a[0], a[1]), 999: out("192.0.2.77", "")}) // by a former runtime
	r.SetPod(newPod("a", a, says("off")))
	if st := r.Status(); st.Synced || f.reads > 0 {
		t.Errorf("before all pods are known: %+v", st)
	}
	r.SetSynced()
	settled(t, r)
	f.want(t, "as taken over", optedOut(map[uint64]bpf.Workload{cookieA: out(a[0], a[1])}))
	if f.writes != 1 {
		t.Errorf("%d writes, want the removal of what is gone", f.writes)
	}
	r.SetPod(newPod("b", b))
	r.SetPod(newPod("b", b, says("off")))
	settled(t, r)
	f.want(t, "a second one", optedOut(map[uint64]bpf.Workload{cookieA: out(a[0], a[1]), cookieB: out(b[0], b[1])}))
	r.SetPod(newPod("a", a, says("on")))
	settled(t, r)
	f.want(t, "the first is back", optedOut(map[uint64]bpf.Workload{cookieB: out(b[0], b[1])}))
	r.SetFallback(false)
	if st := settled(t, r); len(st.Problems) != 1 || st.Problems[0].Reason != NothingElse {
		t.Errorf("problems: %v", st.Problems)
	}
	f.want(t, "kube-proxy is gone", Table{})
	r.SetFallback(true)
	settled(t, r)
	r.DeletePod(types.NamespacedName{Namespace: "default", Name: "b"})
	settled(t, r)
	f.want(t, "the pod is gone", Table{})
}

func TestReconcilerNamesEveryNamespaceForRanges(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true})
	pod, cookie := m.addPod(1)
	other, otherCookie := m.addPod(2)
	m.start(pod)
	m.start(other)
	var host uint64
	must(t, m.l.Do(func() (err error) { host, err = m.cookie(); return err }))
	r.SetPod(newPod("a", ips(1)))
	r.SetSynced()
	settled(t, r)
	f.want(t, "without ranges", Table{})
	r.SetRanges(true)
	settled(t, r)
	want := map[uint64]bpf.Workload{host: in("192.0.2.1", ""), cookie: in(ips(1)[0], ips(1)[1]), otherCookie: in(ips(2)[0], ips(2)[1])}
	f.want(t, "with ranges", Table{Workloads: want})
	r.SetNode(addrs("192.0.2.9", "2001:db8::9"))
	settled(t, r)
	want[host] = in("192.0.2.9", "2001:db8::9")
	f.want(t, "the node's addresses are known", Table{Workloads: want})
	r.SetRanges(false)
	settled(t, r)
	f.want(t, "without ranges again", Table{})
}

// A container that is no pod comes without a word.
func TestReconcilerRescans(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Rescan: 50 * time.Millisecond})
	r.SetRanges(true)
	r.SetSynced()
	settled(t, r)
	p, cookie := m.addPod(1)
	pid := m.start(p)
	has := func() bool { f.mu.Lock(); defer f.mu.Unlock(); _, ok := f.table.Workloads[cookie]; return ok }
	lab.Await(t, "the container's entry", has)
	must(t, f.Delete(cookie))
	lab.Await(t, "the entry that another program removed", has)
	m.end(pid)
	lab.Await(t, "its removal", func() bool { return !has() })
}

func TestReconcilerLooksUntilThePodIsThere(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	var log lab.Log
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	r.SetFallback(true)
	r.SetSynced()
	r.SetPod(newPod("a", ips(1), says("off")))
	st := settled(t, r)
	if len(st.Problems) != 1 || st.Problems[0].Reason != NoNamespace {
		t.Errorf("%+v", st)
	}
	p, cookie := m.addPod(1)
	m.start(p)
	lab.Await(t, "the pod's entry", func() bool { return f.is(optedOut(map[uint64]bpf.Workload{cookie: out(ips(1)[0], ips(1)[1])})) })
	if log.String() != "" {
		t.Errorf("it was only early, but logged is %q", log.String())
	}
	lab.Await(t, "no problem", func() bool { return len(r.Status().Problems) == 0 })
}

// The pod's sandbox was made again: another namespace, the same pod.
func TestReconcilerRemovesAnEntryWithItsNamespace(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Rescan: 50 * time.Millisecond})
	r.SetFallback(true)
	r.SetSynced()
	first, cookie := m.addPod(1)
	second, cookie2 := m.addPod(2)
	pid := m.start(first)
	r.SetPod(newPod("a", ips(1), says("off")))
	settled(t, r)
	f.want(t, "at first", optedOut(map[uint64]bpf.Workload{cookie: out(ips(1)[0], ips(1)[1])}))
	m.end(pid) // its container crashed and is to be started again in the same namespace
	scans := r.Status().Scans
	lab.Await(t, "two looks", func() bool { return r.Status().Scans > scans+1 })
	f.want(t, "out of sight", optedOut(map[uint64]bpf.Workload{cookie: out(ips(1)[0], ips(1)[1])}))
	m.start(second)
	r.SetPod(newPod("a", ips(2), says("off")))
	settled(t, r)
	f.want(t, "anew", optedOut(map[uint64]bpf.Workload{cookie2: out(ips(2)[0], ips(2)[1])}))
	r.DeletePod(types.NamespacedName{Namespace: "default", Name: "a"})
	settled(t, r)
	f.want(t, "at last", Table{})
}

func TestReconcilerIsIdleWithoutRequest(t *testing.T) {
	m := newMachine(t)
	m.c.Proc = filepath.Join(m.l.Dir, "none") // a look would fail
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Rescan: time.Millisecond})
	r.SetFallback(true)
	r.SetSynced()
	settled(t, r)
	for i := range 20 {
		r.SetPod(newPod(fmt.Sprint("p", i), ips(i+1)))
		r.SetPod(newPod("host", ips(99), hostNetwork, says("off")))
		settled(t, r)
	}
	if st := r.Status(); st.Scans != 0 || st.Err != nil || f.reads != 1 || f.writes != 0 {
		t.Errorf("%+v, %d reads and %d writes; want one read", st, f.reads, f.writes)
	}
}

func TestReconcilerKeepsEntriesWhenALookFails(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	var log lab.Log
	broken := m.c
	broken.Proc = filepath.Join(m.l.Dir, "none")
	f.table = optedOut(map[uint64]bpf.Workload{77: out("198.51.100.1", "")})
	r := start(t, Config{Store: f, Namespaces: broken, Cookie: m.cookie, Programs: true, Rescan: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	r.SetFallback(true)
	r.SetPod(newPod("a", ips(1), says("off")))
	r.SetSynced()
	lab.Await(t, "a few looks", func() bool { st := r.Status(); return st.Scans > 3 && errors.Is(st.Err, os.ErrNotExist) })
	f.want(t, "while nothing can be seen", optedOut(map[uint64]bpf.Workload{77: out("198.51.100.1", "")}))
	if n := strings.Count(log.String(), "\n"); n > 2 {
		t.Errorf("%d lines are logged:\n%s", n, log.String())
	}
	must(t, os.Symlink(m.c.Proc, broken.Proc))
	p, cookie := m.addPod(1)
	m.start(p)
	lab.Await(t, "all is well", func() bool { return f.is(optedOut(map[uint64]bpf.Workload{cookie: out(ips(1)[0], ips(1)[1])})) })
}

func TestReconcilerRetriesAFailedStore(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	f.broken = unix.EPERM
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true})
	r.SetFallback(true)
	p, cookie := m.addPod(1)
	m.start(p)
	r.SetPod(newPod("a", ips(1), says("off")))
	r.SetSynced()
	lab.Await(t, "the error", func() bool { return errors.Is(r.Status().Err, unix.EPERM) })
	f.mu.Lock()
	f.broken = nil
	f.mu.Unlock()
	lab.Await(t, "all is well", func() bool { return f.is(optedOut(map[uint64]bpf.Workload{cookie: out(ips(1)[0], ips(1)[1])})) })
}

// The programs know cookies, and we don't: an ancestor of our cgroup has a program that lets no other in, for example.
func TestReconcilerWithoutCookies(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	m.cookie = func() (uint64, error) { return 0, fmt.Errorf("%w: because", natinit.ErrNoCookie) }
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Rescan: time.Millisecond})
	r.SetFallback(true)
	r.SetPod(newPod("a", ips(1), says("off")))
	r.SetSynced()
	lab.Await(t, "the problem", func() bool {
		st := r.Status()
		return len(st.Problems) == 1 && st.Problems[0].Reason == NoCookies
	})
	r.SetRanges(true)
	lab.Await(t, "the error, with what follows and why", func() bool {
		err := r.Status().Err
		return errors.Is(err, natinit.ErrNoCookie) && strings.Contains(err.Error(), "reject every client") && strings.Contains(err.Error(), "because")
	})
	r.SetRanges(false)
	if st := settled(t, r); st.Scans != 1 || len(st.Problems) != 1 || st.Err != nil || f.writes != 0 {
		t.Errorf("%+v, %d writes", st, f.writes)
	}
}

// Below Linux 5.7, all of the node is one client.
func TestReconcilerWithoutCookiesInPrograms(t *testing.T) {
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: netns.Config{Proc: t.TempDir()}, Rescan: time.Millisecond})
	r.SetSynced()
	r.SetRanges(true)
	r.SetNode(addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"))
	st := settled(t, r)
	f.want(t, "with ranges", Table{Workloads: map[uint64]bpf.Workload{0: in("192.0.2.1", "2001:db8::1")}})
	r.SetRanges(false)
	if st = settled(t, r); st.Scans != 0 {
		t.Errorf("%+v", st)
	}
	f.want(t, "without", Table{})
}

// A map without room is no reason to look all the time.
func TestReconcilerWaitsWhenTheMapIsFull(t *testing.T) {
	m := newMachine(t)
	f := newFake(0)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true})
	r.SetFallback(true)
	p, _ := m.addPod(1)
	m.start(p)
	r.SetPod(newPod("a", ips(1), says("off")))
	r.SetSynced()
	lab.Await(t, "the error", func() bool { return errors.Is(r.Status().Err, ErrFull) })
	if st := r.Status(); st.Scans != 1 || st.Synced {
		t.Errorf("%+v", st)
	}
}

// Pods come and go in batches, reported by many goroutines.
func TestReconcilerConcurrentChanges(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true, Rescan: 5 * time.Millisecond})
	r.SetFallback(true)
	r.SetSynced()
	want := map[uint64]bpf.Workload{}
	for i := 1; i <= 4; i++ {
		p, cookie := m.addPod(i)
		m.start(p)
		want[cookie] = out(ips(i)[0], ips(i)[1])
	}
	var all sync.WaitGroup
	for i := 1; i <= 4; i++ {
		all.Go(func() {
			for round := range 50 {
				r.SetPod(newPod(fmt.Sprint(i), ips(i), says([]string{"on", "off"}[round%2])))
				r.SetRanges(round%3 == 0)
				r.SetNode(addrs(fmt.Sprint("192.0.2.", round+1)))
				r.Status()
				runtime.Gosched()
			}
		})
	}
	all.Wait()
	r.SetRanges(false)
	settled(t, r)
	f.want(t, "in the end", optedOut(want))
}

func TestReconcilerFollowsEndlessChanges(t *testing.T) {
	m := newMachine(t)
	f := newFake(100)
	r := start(t, Config{Store: f, Namespaces: m.c, Cookie: m.cookie, Programs: true})
	r.SetRanges(true)
	r.SetSynced()
	for i := 0; r.Status().Scans < 3; i++ {
		r.SetNode(addrs(fmt.Sprintf("192.0.%d.%d", i>>8&0xff, i&0xff)))
		time.Sleep(gatherTime / 10)
		if i > 1000 {
			t.Fatalf("after %d changes: %+v", i, r.Status())
		}
	}
}

func TestIsOf(t *testing.T) {
	const uid = types.UID("1b2c3d4e-0000-4000-8000-123456789abc")
	proc := t.TempDir()
	r := New(Config{Namespaces: netns.Config{Proc: proc}})
	for i, tc := range []struct {
		cgroup string
		want   bool
	}{
		{"0::/kubepods/burstable/pod1b2c3d4e-0000-4000-8000-123456789abc/0123\n", true},
		{"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1b2c3d4e_0000_4000_8000_123456789abc.slice/cri-containerd-01.scope\n", true},
		{"11:memory:/kubepods/pod1b2c3d4e-0000-4000-8000-123456789abc/01\n0::/\n", true},
		{"0::/../../podffffffff-0000-4000-8000-123456789abc/0123\n", false},
		{"0::/system.slice/1b2c3d4e-0000-4000-8000-123456789abc.service\n", false},
		{"0::/user.slice/user-1000.slice/user@1000.service/pod1b2c3d4e-0000-4000-8000-123456789abc\n", false}, // a user names it so
		{"0::/kubepods/podffffffff-0000-4000-8000-123456789abc/01/pod1b2c3d4e-0000-4000-8000-123456789abc\n", false},
	} {
		must(t, os.MkdirAll(filepath.Join(proc, strconv.Itoa(i)), 0o755))
		must(t, os.WriteFile(filepath.Join(proc, strconv.Itoa(i), "cgroup"), []byte(tc.cgroup), 0o600))
		if got := r.isOf([]int{i, 999}, uid); got != tc.want || r.isOf([]int{i}, "") {
			t.Errorf("%q: %v", tc.cgroup, got)
		}
	}
}
