package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
	"github.com/firsthop/firsthop/test/lab"
)

// On the real kernel, in a network namespace whose timeouts are its own: Kubernetes' "KubeProxy should set TCP
// CLOSE_WAIT timeout" looks at an entry of conntrack, which has what this setting was when the connection got there.
func TestSetConntrack(t *testing.T) {
	l := lab.New(t)
	const name = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
	at := sysctl.Settings{Proc: "/proc"}
	if !at.ConntrackLoaded() {
		t.Skip("needs netfilter's connection tracking: modprobe nf_conntrack")
	}
	log, said := lab.NewLog()
	cfg := &Config{Log: log, Places: mounts.Places{RunDir: l.RunDir}, Conntrack: sysctl.Conntrack{
		MaxPerCore: 1 << 20, TCPEstablished: sysctl.Timeout{Duration: 24 * time.Hour}, TCPCloseWait: sysctl.Timeout{Duration: time.Hour},
	}}
	r := &run{cfg: cfg}
	value := func() (v uint64) {
		t.Helper()
		err := l.Do(func() (err error) { v, err = at.Read(name); return err })
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if before := value(); before != 60 {
		t.Fatalf("a new namespace begins with %d s", before)
	}
	for range 2 {
		if err := l.Do(func() error { r.setConntrack(t.Context(), at, cfg.Conntrack.Settings(2)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if after := value(); after != 3600 {
		t.Errorf("it is %d s:\n%s", after, said)
	}
	j, err := instance.OpenJournal(l.RunDir, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := sysctl.Recorded(j); len(got) != 2 || got[1].Name != name || got[1].Former != 60 {
		t.Errorf("the journal has %+v", got)
	}
	// What is for the whole machine is not for a namespace to change, and that is said.
	if text := said.String(); !strings.Contains(text, "only the machine's first network namespace may change") || strings.Contains(text, "WARN") || strings.Count(text, "changed a setting") != 2 {
		t.Errorf("the log says\n%s", text)
	}
}

// A container of the host's PID namespace has a /proc/sys of its own that is read-only, and the host's own to go through.
func TestSetConntrackFromAContainer(t *testing.T) {
	l := lab.New(t)
	const name = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
	if !sysctl.Of("").ConntrackLoaded() {
		t.Skip("needs netfilter's connection tracking: modprobe nf_conntrack")
	}
	log, said := lab.NewLog()
	cfg := &Config{
		Log: log, Places: mounts.Places{RunDir: l.RunDir, HostRoot: fmt.Sprintf("/proc/%d/root", os.Getpid()), Proc: "/proc"},
		Conntrack: sysctl.Conntrack{TCPCloseWait: sysctl.Timeout{Duration: time.Hour}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it looks once before it waits
	err := ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""),
		); err != nil {
			return err
		}
		return l.Do(func() error {
			(&run{cfg: cfg}).followConntrack(ctx)
			if v, err := sysctl.Of("").Read(name); err != nil || v != 3600 {
				t.Errorf("it is %d s (%v):\n%s", v, err, said)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What cannot be undone is not done.
func TestSetConntrackNeedsTheJournal(t *testing.T) {
	proc, dir := t.TempDir(), t.TempDir()
	path := proc + "/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"
	if err := os.MkdirAll(proc+"/sys/net/netfilter", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("60\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".damaged"} { // no file, and it cannot be set aside
		if err := os.MkdirAll(dir+"/"+instance.JournalName+name+"/x", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log, said := lab.NewLog()
	cfg := &Config{Log: log, Places: mounts.Places{RunDir: dir}, Conntrack: sysctl.Conntrack{TCPCloseWait: sysctl.Timeout{Duration: time.Hour}}}
	(&run{cfg: cfg}).setConntrack(t.Context(), sysctl.Settings{Proc: proc}, cfg.Conntrack.Settings(1))
	if data, err := os.ReadFile(path); err != nil || string(data) != "60\n" {
		t.Errorf("it is %q (%v):\n%s", data, err, said)
	}
}
