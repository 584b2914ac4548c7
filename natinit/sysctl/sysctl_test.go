package sysctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/instance"
)

// machine is a /proc of its own and a journal beside it.
type machine struct {
	testing.TB
	at  Settings
	run string
}

func newMachine(t testing.TB, values ...string) *machine {
	t.Helper()
	m := &machine{t, Settings{t.TempDir()}, t.TempDir()}
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		m.set(name, value)
	}
	return m
}

func (m *machine) set(name, value string) {
	m.Helper()
	path := m.at.path(conntrackDir + name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		m.Fatal(err)
	}
}

func (m *machine) journal() *instance.Journal {
	m.Helper()
	j, err := instance.OpenJournal(m.run, false)
	if err != nil {
		m.Fatal(err)
	}
	return j
}

// now lists values that were changed: "name=value former".
func (m *machine) want(what, name, value, noted string) {
	m.Helper()
	data, err := os.ReadFile(m.at.path(conntrackDir + name))
	if got := strings.TrimSpace(string(data)); err != nil || got != value {
		m.Errorf("%s: %s is %s, want %s (%v)", what, name, got, value, err)
	}
	got := ""
	for _, e := range m.journal().Entries() {
		if e.Kind == instance.KindSysctl && e.Target == Target(conntrackDir+name) {
			got = e.Former
		}
	}
	if got != noted {
		m.Errorf("%s: the journal has %q of %s, want %q", what, got, name, noted)
	}
}

func (m *machine) apply(want Outcome, name string, s Setting) {
	m.Helper()
	s.Name = conntrackDir + name
	got, _, err := m.at.Apply(m.journal(), s)
	if err != nil || got != want {
		m.Errorf("%s: %q, want %q (%v)", name, got, want, err)
	}
}

func (m *machine) restore() (left []string) {
	m.Helper()
	j := m.journal()
	for _, e := range Recorded(j) {
		why, err := m.at.Restore(e)
		if err != nil {
			m.Error(err)
		}
		if why != "" {
			left = append(left, why)
		}
		if err := j.Forget(instance.KindSysctl, Target(e.Name)); err != nil {
			m.Error(err)
		}
	}
	return left
}

const closeWait = "nf_conntrack_tcp_timeout_close_wait"

func TestApplyAndRestore(t *testing.T) {
	m := newMachine(t, closeWait+"=60")
	hour := Setting{Value: 3600, Default: 60}
	m.apply(Changed, closeWait, hour)
	m.want("set", closeWait, "3600", "60 -> 3600")
	m.apply(UpToDate, closeWait, hour)
	m.apply(Changed, closeWait, Setting{Value: 7200, Default: 60})
	m.want("set to something else by us", closeWait, "7200", "60 -> 3600 7200")
	m.apply(Changed, closeWait, hour)
	m.want("and back", closeWait, "3600", "60 -> 3600 7200")
	if left := m.restore(); left != nil {
		t.Errorf("left: %q", left)
	}
	m.want("restored", closeWait, "60", "")
}

// What an administrator, or a kube-proxy, has set is theirs, before and after.
func TestApplyLeavesWhatOthersSet(t *testing.T) {
	m := newMachine(t, closeWait+"=90")
	hour := Setting{Value: 3600, Default: 60}
	m.apply(Left, closeWait, hour)
	m.want("set by somebody", closeWait, "90", "")
	m.set(closeWait, "3600")
	m.apply(UpToDate, closeWait, hour)
	m.want("set by a kube-proxy", closeWait, "3600", "")

	m.set(closeWait, "60")
	m.apply(Changed, closeWait, hour)
	m.set(closeWait, "90")
	m.apply(Left, closeWait, hour)
	m.want("set by somebody after us", closeWait, "90", "60 -> 3600")
	if left := m.restore(); len(left) != 1 || !strings.Contains(left[0], "90") {
		t.Errorf("left: %q", left)
	}
	m.want("after an uninstall", closeWait, "90", "")

	m.apply(Changed, closeWait, Setting{Value: 3600, Default: 60, Given: true})
	m.want("an administrator wants ours", closeWait, "3600", "90 -> 3600")
	m.set(closeWait, "60") // the module was unloaded and loaded again
	m.apply(Changed, closeWait, hour)
	m.want("the kernel begins anew", closeWait, "3600", "60 -> 3600")
}

func TestApplyRaisesLimitsOnly(t *testing.T) {
	m := newMachine(t, "nf_conntrack_max=65536", "nf_conntrack_buckets=1000", "nf_conntrack_count=10")
	m.apply(UpToDate, "nf_conntrack_max", Setting{Value: 60000, AtLeast: true})
	m.apply(Changed, "nf_conntrack_max", Setting{Value: 131072, AtLeast: true})
	m.want("raised", "nf_conntrack_max", "131072", "65536 -> 131072")
	m.apply(Changed, "nf_conntrack_buckets", Setting{Value: 32768 - 7, AtLeast: true, Unit: 512})
	m.want("rounded as the kernel does", "nf_conntrack_buckets", "32768", "1000 -> 32768")
	m.set("nf_conntrack_count", "70000")
	if left := m.restore(); len(left) != 1 || !strings.Contains(left[0], "70000") {
		t.Errorf("a limit below what is there was restored: %q", left)
	}
	m.want("a lower limit would drop connections", "nf_conntrack_max", "131072", "")
	m.want("restored", "nf_conntrack_buckets", "1000", "")
	for count, want := range map[string]string{"65536": "131072", "65535": "65536"} {
		m.set("nf_conntrack_max", "65536")
		m.apply(Changed, "nf_conntrack_max", Setting{Value: 131072, AtLeast: true})
		m.set("nf_conntrack_count", count)
		m.restore()
		m.want("with "+count+" connections", "nf_conntrack_max", want, "")
	}
}

// The kernel refuses the value: what it was changed to before is still in the journal.
func TestApplyWhatTheKernelRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const name = "net/ipv4/ip_default_ttl"
	m := newMachine(t)
	m.at = Settings{"/proc"}
	err := ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		for _, tc := range []struct {
			value uint64
			fails bool
			noted int
		}{{300, true, 0}, {70, false, 1}, {300, true, 1}} {
			if _, _, err := m.at.Apply(m.journal(), Setting{Name: name, Value: tc.value, Given: true}); (err != nil) != tc.fails {
				t.Errorf("%d: %v", tc.value, err)
			}
			if list := Recorded(m.journal()); len(list) != tc.noted {
				t.Errorf("after %d, the journal has %+v", tc.value, list)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestApplyWhatIsNotThere(t *testing.T) {
	m := newMachine(t)
	m.apply(Missing, closeWait, Setting{Value: 3600, Default: 60})
	if n := len(m.journal().Entries()); n > 0 {
		t.Errorf("%d entries of nothing", n)
	}
	m.set(closeWait, "many")
	if _, _, err := m.at.Apply(m.journal(), Setting{Name: conntrackDir + closeWait, Value: 1}); err == nil {
		t.Error("a value that is no number was replaced")
	}
}

// A kill between the entry and the write: the value is not ours, and stays.
func TestRestoreAfterAKill(t *testing.T) {
	m := newMachine(t, closeWait+"=60")
	if err := m.journal().Amend(instance.KindSysctl, Target(conntrackDir+closeWait), "60 -> 3600"); err != nil {
		t.Fatal(err)
	}
	if left := m.restore(); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
	m.want("never set", closeWait, "60", "")
}

func TestDecodeRefuses(t *testing.T) {
	for _, tc := range [][2]string{
		{"/proc/sys/net/ipv4/ip_forward", "1"}, {"/proc/sys/net/ipv4/ip_forward", "x -> 1"}, {"/proc/sys/net/ipv4/ip_forward", "0 -> 1 x"},
		{"/etc/passwd", "0 -> 1"}, {"/proc/sys/../../etc/passwd", "0 -> 1"},
	} {
		if e, ok := decode(tc[0], tc[1]); ok {
			t.Errorf("%q is read as %+v", tc, e)
		}
	}
}

func TestConntrackSettings(t *testing.T) {
	usual := Conntrack{
		MaxPerCore: DefaultConntrackPerCore, Min: DefaultConntrackMin,
		TCPEstablished: Timeout{Duration: DefaultEstablished}, TCPCloseWait: Timeout{Duration: DefaultCloseWait},
	}
	value := func(c Conntrack, cpus int, name string) string {
		for _, s := range c.Settings(cpus) {
			if s.Name == conntrackDir+name {
				return fmt.Sprint(s.Value)
			}
		}
		return "left"
	}
	for _, tc := range []struct {
		c          Conntrack
		cpus       int
		name, want string
	}{
		{usual, 2, "nf_conntrack_max", "131072"},
		{usual, 8, "nf_conntrack_max", "262144"},
		{usual, 8, "nf_conntrack_buckets", "65536"},
		{usual, 128, "nf_conntrack_max", "1048576"},
		{Conntrack{Min: 1 << 20}, 8, "nf_conntrack_max", "left"},
		{Conntrack{MaxPerCore: 1, Min: 2 << 20}, 8, "nf_conntrack_max", "2097152"},
		{usual, 2, "nf_conntrack_tcp_timeout_established", "86400"},
		{usual, 2, "nf_conntrack_tcp_timeout_close_wait", "3600"},
		{usual, 2, "nf_conntrack_tcp_be_liberal", "left"},
		{usual, 2, "nf_conntrack_udp_timeout", "left"},
		{Conntrack{TCPLiberal: true}, 2, "nf_conntrack_tcp_be_liberal", "1"},
		{Conntrack{UDPStream: Timeout{Duration: DefaultCloseWait}}, 2, "nf_conntrack_udp_timeout_stream", "3600"},
		{Conntrack{}, 2, "nf_conntrack_tcp_timeout_close_wait", "left"},
	} {
		if got := value(tc.c, tc.cpus, tc.name); got != tc.want {
			t.Errorf("%+v on %d processors: %s is %s, want %s", tc.c, tc.cpus, tc.name, got, tc.want)
		}
	}
}

func TestCountList(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8,10-11": 7, "": 0, "3-1": 0, "a": 0, "0-": 0} {
		if got := countList(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}
