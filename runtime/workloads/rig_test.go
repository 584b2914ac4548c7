package workloads

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/lab"
)

// machine is a lab as a host of its own: a made-up /proc that leads to real namespaces.
type machine struct {
	t       testing.TB
	l       *lab.Lab
	c       netns.Config
	cookie  func() (uint64, error)
	nextPID int
}

// setCookies says how cookies are read from now on: by whatever the kernel has, or by a program in any case.
func (m *machine) setCookies(byProgram bool) {
	own := []string{lab.MainCgroup(m.t)}
	cookies := natinit.NewCookies(natinit.CookiesConfig{
		Features: bpf.Features(lab.KernelFeatures()), NoOption: byProgram, Cgroups: func() ([]string, error) { return own, nil },
	})
	m.t.Cleanup(func() { must(m.t, cookies.Close()) })
	m.cookie = cookies.Cookie
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be read")
	m := &machine{t: t, l: lab.New(t), nextPID: 10}
	m.setCookies(false)
	m.c = netns.Config{Proc: filepath.Join(m.l.Dir, "proc"), Root: filepath.Join(m.l.Dir, "root"), Host: m.l.Netns}
	must(t, os.Mkdir(m.c.Proc, 0o755))
	must(t, m.l.AddAddr("192.0.2.1/32"))
	return m
}

func ips(i int) []string {
	return []string{fmt.Sprint("198.51.100.", i), fmt.Sprintf("2001:db8:1::%d", i)}
}

// addPod makes a pod's namespace and returns it with its cookie. Nothing on the host shows it yet.
func (m *machine) addPod(i int) (*lab.Pod, uint64) {
	m.t.Helper()
	p, err := m.l.AddPod(fmt.Sprint("pod", i), netip.MustParseAddr(ips(i)[0]), netip.MustParseAddr(ips(i)[1]))
	must(m.t, err)
	var cookie uint64
	must(m.t, p.Do(func() (err error) { cookie, err = m.cookie(); return err }))
	return p, cookie
}

// start makes a process of the host that is in a pod's namespace.
func (m *machine) start(p *lab.Pod) (pid int) {
	m.t.Helper()
	m.nextPID++
	dir := filepath.Join(m.c.Proc, strconv.Itoa(m.nextPID), "ns")
	must(m.t, os.MkdirAll(dir, 0o755))
	must(m.t, os.Symlink(p.Netns, filepath.Join(dir, "net")))
	return m.nextPID
}

func (m *machine) end(pid int) {
	m.t.Helper()
	must(m.t, os.RemoveAll(filepath.Join(m.c.Proc, strconv.Itoa(pid))))
}

// start runs a reconciler until the test ends.
func start(t testing.TB, cfg Config) *Reconciler {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return startThis(t, New(cfg))
}

func startThis(t testing.TB, r *Reconciler) *Reconciler {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return r
}

func settled(t testing.TB, r *Reconciler) Status {
	t.Helper()
	lab.Await(t, "the table is up to date", func() bool { return r.Status().Synced })
	return r.Status()
}

// is asks for the content of the fake.
func (f *fake) is(want Table) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table.Control != want.Control || len(f.table.Workloads) != len(want.Workloads) {
		return false
	}
	for c, w := range want.Workloads {
		if f.table.Workloads[c] != w {
			return false
		}
	}
	return true
}

func (f *fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%+v", f.table)
}

func (f *fake) want(t testing.TB, when string, want Table) {
	t.Helper()
	if !f.is(want) {
		t.Errorf("%s: the programs know %s, want %+v", when, f, want)
	}
}

func optedOut(m map[uint64]bpf.Workload) Table {
	return Table{Workloads: m, Control: bpf.ControlOptOut}
}

func TestMain(m *testing.M) { os.Exit(lab.RunMainInCgroup(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fake is a Store that answers as the programs would, between any two writes.
type fake struct {
	mu      sync.Mutex
	table   Table
	room    int
	reads   int
	writes  int
	observe func(*fake) // after each write, with the lock held
	broken  error
}

var _ Store = (*fake)(nil)

func newFake(room int) *fake {
	return &fake{table: Table{Workloads: map[uint64]bpf.Workload{}}, room: room}
}

// optedOut is opted_out of bpf/lib/workload.h.
func (f *fake) optedOut(cookie uint64) bool {
	return f.table.Control&bpf.ControlOptOut != 0 && f.table.Workloads[cookie].Flags&bpf.WorkloadOptedOut != 0
}

func (f *fake) Read() (Table, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return Table{Workloads: maps.Clone(f.table.Workloads), Control: f.table.Control}, f.broken
}

func (f *fake) write(fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	if err := fn(); err != nil {
		return err
	}
	f.writes++
	if f.observe != nil {
		f.observe(f)
	}
	return nil
}

func (f *fake) Put(cookie uint64, w bpf.Workload) error {
	return f.write(func() error {
		if _, ok := f.table.Workloads[cookie]; !ok && len(f.table.Workloads) >= f.room {
			return errors.Join(ErrFull)
		}
		f.table.Workloads[cookie] = w
		return nil
	})
}

func (f *fake) Delete(cookie uint64) error {
	return f.write(func() error { delete(f.table.Workloads, cookie); return nil })
}

func (f *fake) SetControl(c bpf.Control) error {
	return f.write(func() error { f.table.Control = f.table.Control&^ownControl | c&ownControl; return nil })
}
