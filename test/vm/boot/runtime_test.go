package boot

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/test/vm/kube"
)

// These tests are of the path runtime: `firsthop run` as systemd runs it, with a real API server.

const (
	runtimeUnit = "firsthop.service"
	servesAll   = "every Service is served at connect time"
	web         = "10.96.9.1:80"
	settings    = "KUBERNETES_SERVICE_IPS_PORTS=" + vip + "\nKUBERNETES_APISERVER_ENDPOINTS=" + server + "\n" +
		"FIRSTHOP_KUBECONFIG=" + kube.Kubeconfig + "\nFIRSTHOP_NODE_NAME=" + kube.Node + "\n"
)

// TestRuntimeBefore is TestBefore without a stand-in for the API server.
func TestRuntimeBefore(t *testing.T) {
	needsSystem(t)
	kube.Await(t, "the kubelet's first connection", func() error { _, err := os.Stat(kubeletSaw); return err })
	wantKubelet(t, refused)
	if err := os.WriteFile(before, []byte(strings.Join(onDisk(t), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	kube.Prepare(t)
	mustRun(t, "systemctl", "start", "etcd.service", "apiserver.service")
}

// TestRuntimeInstall does what an administrator does. The unit is up when it has taken over what init made, and waits for
// no API server; a Service that is made later is served then.
func TestRuntimeInstall(t *testing.T) {
	needsDpkg(t)
	mustRun(t, "dpkg", "--install", debFile(t, "0.1.0"))
	wantState(t, "is-enabled", runtimeUnit, "disabled")
	if err := os.WriteFile(pkgSettings, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	c := kube.NewClient(t)
	rbac, err := os.ReadFile("/run/vm/kube/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(rbac)
	c.Bind(kube.User, "firsthop")
	c.AddNode()
	patiently(t, "/usr/bin/firsthop", "init", "--service-ips", vip, "--endpoints", server)

	mustRun(t, "systemctl", "kill", "--signal=STOP", "apiserver.service")
	mustRun(t, "systemctl", "enable", "--now", runtimeUnit)
	wantState(t, "is-active", runtimeUnit, "active")
	wantState(t, "is-enabled", runtimeUnit, "enabled")
	if got := statusText(t); got == servesAll || got == "" {
		t.Errorf("without an API server its status is %q", got)
	}
	mustRun(t, "systemctl", "kill", "--signal=CONT", "apiserver.service")
	c.Serve("web", netip.MustParseAddrPort(web), kube.Backend, corev1.ProtocolTCP)
	awaitVisit(t, web, kube.Greeting)
	kube.Await(t, "the unit's status", func() error {
		if got := statusText(t); got != servesAll {
			return errors.New(got)
		}
		return nil
	})
	kube.Await(t, "the Node's condition", func() error {
		if proxy, ready := c.Says(); proxy != "active" || ready.Status != corev1.ConditionTrue {
			return fmt.Errorf("%q, %+v", proxy, ready)
		}
		return nil
	})
}

// TestRuntimeServes does what takes each right that the unit has, and looks for what it was refused.
func TestRuntimeServes(t *testing.T) {
	needsSystem(t)
	c := kube.NewClient(t)
	const dns = "10.96.9.2:53"
	c.Serve("dns", netip.MustParseAddrPort(dns), netip.MustParseAddrPort("192.0.2.10:5353"), corev1.ProtocolUDP)
	for _, line := range []string{
		"ip netns add pod", "ip -n pod link set lo up", "ip -n pod link add eth0 type dummy", "ip -n pod address add 10.244.0.2/24 dev eth0",
		"ip -n pod link set eth0 up", "ip -n pod route add default dev eth0",
	} {
		mustRun(t, strings.Fields(line)[0], strings.Fields(line)[1:]...)
	}
	defer mustRun(t, "ip", "netns", "delete", "pod")
	kube.Await(t, dns+" to be in the table", func() error { return inTable(t, dns, "192.0.2.10:5353") })
	socket, err := udpSocketIn("/run/netns/pod", netip.MustParseAddrPort(dns))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	c.Leave("dns")
	kube.Await(t, "the socket to end with its backend", func() error {
		if _, err := unix.Write(socket, []byte("x")); !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EDESTADDRREQ) {
			return fmt.Errorf("it can still be written to: %v", err)
		}
		return nil
	})

	for _, file := range []string{"/run/firsthop", "/var/lib/firsthop/apiserver.json"} {
		wantThere(t, file)
	}
	mustRun(t, "/usr/bin/firsthop", "status")
	mustRun(t, "/usr/bin/firsthop", "nat", "lookup", web)
	mustRun(t, "/usr/bin/firsthop", "doctor")
	noRefusal(t)
}

// TestRuntimeKilled: systemd starts it again, and no connection fails.
func TestRuntimeKilled(t *testing.T) {
	needsSystem(t)
	kube.WhileConnecting(t, web, kube.Greeting, func() { restarts(t, func(pid int) error { return unix.Kill(pid, unix.SIGKILL) }) })
	c := kube.NewClient(t)
	c.Serve("web2", netip.MustParseAddrPort("10.96.9.3:80"), kube.Backend, corev1.ProtocolTCP)
	awaitVisit(t, "10.96.9.3:80", kube.Greeting)
}

// TestRuntimeHangs: the watchdog ends one that does nothing.
func TestRuntimeHangs(t *testing.T) {
	needsSystem(t)
	kube.WhileConnecting(t, web, kube.Greeting, func() { restarts(t, func(pid int) error { return unix.Kill(pid, unix.SIGSTOP) }) })
	wantSaid(t, journalOf(t, runtimeUnit), "Watchdog timeout")
	noRefusal(t)
}

// TestRuntimeStopped: what it has made goes on without it.
func TestRuntimeStopped(t *testing.T) {
	needsSystem(t)
	kube.WhileConnecting(t, web, kube.Greeting, func() {
		mustRun(t, "systemctl", "stop", runtimeUnit)
		if got := property(t, runtimeUnit, "Result"); got != "success" {
			t.Errorf("its end is a %s", got)
		}
		awaitVisit(t, web, kube.Greeting)
		mustRun(t, "systemctl", "start", runtimeUnit)
	})
	mustRun(t, "sync")
}

// TestRuntimeBoot is for a boot in which all was there before.
func TestRuntimeBoot(t *testing.T) {
	needsSystem(t)
	kube.Await(t, "the kubelet's first connection", func() error { _, err := os.Stat(kubeletSaw); return err })
	wantKubelet(t, func(saw string) bool { return !kube.Unroutable(saw) }) // the API server may not be up yet
	wantState(t, "is-active", unit, "active")
	awaitActive(t)
	initEnded, started := microseconds(t, unit, "ExecMainExitTimestampMonotonic"), microseconds(t, runtimeUnit, "ExecMainStartTimestampMonotonic")
	t.Logf("%s ended at %d µs, %s started at %d and was up at %d, kubelet started at %d", unit, initEnded, runtimeUnit, started,
		microseconds(t, runtimeUnit, "ActiveEnterTimestampMonotonic"), microseconds(t, "kubelet.service", "ExecMainStartTimestampMonotonic"))
	if started < initEnded {
		t.Error("it was started before init was done")
	}
	if slices.Contains(strings.Fields(property(t, "kubelet.service", "After")), runtimeUnit) {
		t.Error("kubelet waits for it")
	}
	if got := property(t, runtimeUnit, "NRestarts"); got != "0" {
		t.Errorf("it was started %s times again\n%s", got, journalOf(t, runtimeUnit))
	}
	kube.NewClient(t)
	kube.Await(t, "the kubelet's first answer", func() error { _, err := os.Stat(kube.KubeletReady); return err })
	awaitVisit(t, web, kube.Greeting)
	noRefusal(t)
}

// TestRuntimeUpgrade comes after TestRuntimeBoot: the new version serves, and no connection fails.
func TestRuntimeUpgrade(t *testing.T) {
	needsDpkg(t)
	wantSaid(t, mustRun(t, "/usr/bin/firsthop", "status"), "v0.1.0")
	kube.WhileConnecting(t, web, kube.Greeting, func() { mustRun(t, "dpkg", "--install", debFile(t, "0.2.0")) })
	awaitActive(t)
	if exe, err := os.Readlink("/proc/" + property(t, runtimeUnit, "MainPID") + "/exe"); err != nil || exe != "/usr/bin/firsthop" {
		t.Errorf("what runs is %s (%v)", exe, err)
	}
	wantState(t, "is-enabled", runtimeUnit, "enabled")
	kube.NewClient(t).Serve("web3", netip.MustParseAddrPort("10.96.9.4:80"), kube.Backend, corev1.ProtocolTCP)
	awaitVisit(t, "10.96.9.4:80", kube.Greeting)
	noRefusal(t)
}

// TestRuntimeRemove comes after TestRuntimeUpgrade: it is refused to take the node's Services away, but to end is not.
func TestRuntimeRemove(t *testing.T) {
	needsDpkg(t)
	out, code := run(t, "/usr/bin/firsthop", "uninstall")
	if code == 0 || !strings.Contains(out, "systemctl stop firsthop") {
		t.Errorf("beside a runtime, uninstall: %d\n%s", code, out)
	}
	awaitVisit(t, web, kube.Greeting)
	kube.WhileConnecting(t, web, kube.Greeting, func() {
		out = mustRun(t, "dpkg", "--remove", "firsthop")
	})
	wantSaid(t, out, "stays until the next reboot")
	if pid := property(t, runtimeUnit, "MainPID"); pid != "0" {
		t.Errorf("it still runs: %s", pid)
	}
	wantAbsent(t, "/usr/lib/systemd/system/"+runtimeUnit, "/usr/bin/firsthop")
	mustRun(t, "sync")
}

// TestRuntimePurge is for the boot after that.
func TestRuntimePurge(t *testing.T) {
	needsDpkg(t)
	kube.Await(t, "the kubelet's first connection", func() error { _, err := os.Stat(kubeletSaw); return err })
	if saw, err := os.ReadFile(kubeletSaw); err != nil || !kube.Unroutable(string(saw)) {
		t.Errorf("kubelet's first connection gave %q, %v", saw, err)
	}
	if got := attached(t); len(got) > 0 {
		t.Errorf("programs: %q", got)
	}
	mustRun(t, "dpkg", "--purge", "firsthop")
	if got := property(t, runtimeUnit, "LoadState"); got != "not-found" {
		t.Errorf("%s: %s", runtimeUnit, got)
	}
	noPackageTrace(t)
}

func statusText(t *testing.T) string {
	t.Helper()
	return property(t, runtimeUnit, "StatusText")
}

func awaitVisit(t *testing.T, address, want string) {
	t.Helper()
	kube.Await(t, address+" to be served", func() error {
		if saw := kube.Visit(address); saw != want {
			return errors.New(saw)
		}
		return nil
	})
}

func awaitActive(t *testing.T) {
	t.Helper()
	kube.Await(t, runtimeUnit+" to be up", func() error {
		if got := property(t, runtimeUnit, "ActiveState"); got != "active" {
			return errors.New(got)
		}
		return nil
	})
}

// restarts ends the process of the unit somehow, and waits for the next one.
func restarts(t *testing.T, end func(pid int) error) {
	t.Helper()
	awaitActive(t)
	was := property(t, runtimeUnit, "MainPID")
	pid, err := strconv.Atoi(was)
	if err == nil {
		err = end(pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	kube.Await(t, "another process", func() error {
		if pid := property(t, runtimeUnit, "MainPID"); pid == was || pid == "0" {
			return fmt.Errorf("it is %s, and was %s", pid, was)
		}
		return nil
	})
	awaitActive(t)
}

func journalOf(t *testing.T, unit string) string {
	t.Helper()
	out, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit="+unit)
	return out
}

// noRefusal looks for what the unit's limits, or its rights in the cluster, have kept from it.
func noRefusal(t *testing.T) {
	t.Helper()
	journal := journalOf(t, runtimeUnit)
	// An API server that starts refuses what it has not read the roles of yet.
	_, after, again := strings.Cut(journal, "says again how Services are served")
	if !again {
		after = journal
	}
	for line := range strings.Lines(after) {
		for _, bad := range []string{"not permitted", "permission denied", "not implemented", "forbidden", "level=ERROR", "Failed to parse", "Unknown "} {
			if strings.Contains(line, bad) {
				t.Errorf("the journal has: %s", line)
			}
		}
	}
	if t.Failed() {
		t.Logf("journal:\n%s", journal)
	}
}

// inTable looks a UDP address up in the table.
func inTable(t *testing.T, address, want string) error {
	t.Helper()
	if out, code := run(t, "/usr/bin/firsthop", "nat", "lookup", "--udp", address); code != 0 || !strings.Contains(out, want) {
		return errors.New(out)
	}
	return nil
}

// udpSocketIn makes a connected socket in a network namespace.
func udpSocketIn(netns string, to netip.AddrPort) (socket int, err error) {
	file, err := os.Open(netns)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	err = ns.Do(func() error {
		if err := ns.Enter(int(file.Fd()), netns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		if socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Connect(socket, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			unix.Close(socket)
			return err
		}
		return nil
	})
	return socket, err
}
