package kubeproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// node is a network namespace in which tests put what kube-proxy leaves.
type node struct {
	*testing.T
	lab *lab.Lab
	// proc is a /proc that shows the processes of this test alone, as if units had started them. What it says of them is
	// the kernel's word otherwise.
	proc string
}

func newNode(t *testing.T) node {
	t.Helper()
	n := node{t, lab.New(t), t.TempDir()}
	mustWrite(t, filepath.Join(n.proc, "2/stat"), "2 (kthreadd) S 0 0 0 0 -1 2129984 0")
	if err := os.Symlink("/proc/modules", filepath.Join(n.proc, "modules")); err != nil {
		t.Fatal(err)
	}
	n.run("", "nft", "list", "tables") // has the kernel load nf_tables, which a look must not
	return n
}

// detect looks from inside of the node, at all rules or for some addresses.
func (n node) detect(addrs ...netip.AddrPort) Presence {
	n.Helper()
	return n.detectWith(NewDetector(Config{Proc: n.proc, AnyFrontend: len(addrs) == 0}), addrs...)
}

func (n node) detectWith(d *Detector, addrs ...netip.AddrPort) (p Presence) {
	n.Helper()
	err := n.lab.Do(func() (err error) {
		p, err = d.Detect(n.Context(), addrs...)
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	return p
}

// run runs a command inside of the node.
func (n node) run(stdin string, command ...string) string {
	n.Helper()
	cmd := n.lab.Command(n.Context(), command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// restore loads a file of testdata.
func (n node) restore(file string, command ...string) {
	n.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		n.Fatal(err)
	}
	n.run(string(data), command...)
}

// addDevice makes the device of kube-proxy's IPVS mode. Its kind is of no
// matter, and not every kernel has dummy devices.
func (n node) addDevice(addrs ...string) {
	n.Helper()
	err := n.lab.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = ipvsDevice
		var link netlink.Link = &netlink.Dummy{LinkAttrs: attrs}
		err := netlink.LinkAdd(link)
		if errors.Is(err, unix.EOPNOTSUPP) {
			link = &netlink.Bridge{LinkAttrs: attrs}
			err = netlink.LinkAdd(link)
		}
		if err != nil {
			return err
		}
		for _, s := range addrs {
			addr, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
}

// process is a real one with a name of the test's choice: a copy of the shell
// that waits for its input to end.
type process struct {
	*lab.Cmd
	stdin io.WriteCloser
}

// startProcess starts one inside of the given lab.
func (n node) startProcess(l *lab.Lab, name string, args ...string) process {
	n.Helper()
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		n.Fatal(err)
	}
	path := filepath.Join(n.TempDir(), name)
	if err := os.WriteFile(path, shell, 0o755); err != nil {
		n.Fatal(err)
	}
	p := process{Cmd: l.Command(n.Context(), path, append([]string{"-c", "echo; read line", name}, args...)...)}
	if p.stdin, err = p.StdinPipe(); err != nil {
		n.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := p.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(p.end)
	if _, err := stdout.Read(make([]byte, 1)); err != nil { // now it is what it is named
		n.Fatal(err)
	}
	return p
}

// startedBy shows a process as the main one of a unit, or as one in a cgroup with a slash in its name.
func (n node) startedBy(unit string, p process) process {
	n.Helper()
	pid := strconv.Itoa(p.Process.Pid)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		n.Fatal(err)
	}
	text := regexp.MustCompile(`PPid:\t\d+`).ReplaceAllString(string(status), "PPid:\t1")
	text = regexp.MustCompile(`NSpid:.*`).ReplaceAllString(text, "NSpid:\t"+pid)
	group := "/system.slice/" + unit + ".service"
	if strings.Contains(unit, "/") {
		group = unit
	}
	mustWrite(n.T, filepath.Join(n.proc, pid, "status"), text)
	mustWrite(n.T, filepath.Join(n.proc, pid, "cgroup"), "0::"+group+"\n")
	for _, file := range []string{"ns", "comm", "cmdline"} {
		at := filepath.Join(n.proc, pid, file)
		if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
			n.Fatal(err)
		}
		if err := os.Symlink("/proc/"+pid+"/"+file, at); err != nil {
			n.Fatal(err)
		}
	}
	return p
}

// end ends the process; the second time does nothing.
func (p process) end() {
	p.stdin.Close()
	_ = p.Wait()
}

// becomeZombie ends the process without taking notice of it.
func (p process) becomeZombie(t *testing.T) {
	t.Helper()
	p.stdin.Close()
	lab.Await(t, "the process to end", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "stat"))
		return err == nil && bytes.Contains(stat, []byte(") Z "))
	})
}

// find returns the evidence of a source.
func find(t *testing.T, p Presence, source string) Evidence {
	t.Helper()
	for _, e := range p.Evidence {
		if e.Source == source {
			return e
		}
	}
	t.Fatalf("no evidence from %q in\n%s", source, p)
	return Evidence{}
}

// served asks about several addresses: each is followed by " yes" or " no",
// and by " perhaps" where that isn't sure.
func served(p Presence, addrs ...string) string {
	var b strings.Builder
	for _, addr := range addrs {
		yes, sure := p.Serves(netip.MustParseAddrPort(addr))
		b.WriteString(addr)
		if !sure {
			b.WriteString(" perhaps")
		}
		if yes {
			b.WriteString(" yes\n")
		} else {
			b.WriteString(" no\n")
		}
	}
	return b.String()
}

// addrsOf are the addresses of lines as checkServed takes them.
func addrsOf(lines ...string) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, line := range lines {
		addr, _, _ := strings.Cut(line, " ")
		addrs = append(addrs, netip.MustParseAddrPort(addr))
	}
	return addrs
}

func checkServed(t *testing.T, p Presence, want ...string) {
	t.Helper()
	var addrs []string
	for _, line := range want {
		addr, _, _ := strings.Cut(line, " ")
		addrs = append(addrs, addr)
	}
	if got := served(p, addrs...); got != strings.Join(want, "\n")+"\n" {
		t.Errorf("served:\n%swant:\n%s", got, strings.Join(want, "\n"))
	}
}

// withoutCapabilities runs f while the calling thread has no effective
// capabilities. They are each thread's own, see capabilities(7).
func withoutCapabilities(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, none [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		return err
	}
	none = all
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	return errors.Join(f(), unix.Capset(&header, &all[0]))
}

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// String is the summary, and every place that was looked at on a line.
func (p Presence) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, p.Summary())
	for _, e := range p.Evidence {
		fmt.Fprintln(&b, " ", e.Source, e.Found, e.Detail)
	}
	return b.String()
}
