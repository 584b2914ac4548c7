// Package inside has tests that are for virtual machines only: firsthop without a directory or cgroup of its own, as on
// a node, so on the machine's root cgroup and /sys/fs/bpf. make test-vm runs them.
package inside

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/standin"
	"github.com/firsthop/firsthop/test/vm/wire"
)

const (
	vip4, vip6       = "10.96.0.1:443", "[fd00:96::1]:443"
	dns4, dns6       = "10.96.0.10:53", "[fd00:96::a]:53"
	server4, server6 = "127.0.0.1:6443", "[::1]:6443"
	varVIPs          = "KUBERNETES_SERVICE_IPS_PORTS=" + vip4 + "," + vip6
	varServers       = "KUBERNETES_APISERVER_ENDPOINTS="
)

// needsMachine leaves out a test where the root cgroup is not for tests.
func needsMachine(t *testing.T) {
	t.Helper()
	exe, _ := os.Readlink("/proc/1/exe") // unreadable for others than root
	if _, err := os.Stat(wire.ManifestPath); err != nil || exe != "/init" {
		t.Skip("needs a virtual machine: make test-vm")
	}
}

// result is how a run of firsthop ended.
type result struct {
	*testing.T
	line           string
	code           int
	stdout, stderr string
}

// firsthop runs it with settings of the environment before the command, as a shell does.
func firsthop(t *testing.T, line ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := slices.IndexFunc(line, func(s string) bool { return !strings.Contains(s, "=") })
	cmd := exec.CommandContext(ctx, "/bin/firsthop", line[first:]...)
	cmd.Env = line[:first:first]
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("run firsthop %q: %v, %v\n%s%s", line, err, ctx.Err(), &stdout, &stderr)
	}
	return result{t, strings.Join(line, " "), cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (r result) exits(code int) result {
	r.Helper()
	if r.code != code {
		r.Fatalf("%s: exit code %d, want %d\n%s%s", r.line, r.code, code, r.stdout, r.stderr)
	}
	return r
}

func (r result) says(texts ...string) result {
	r.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) && !strings.Contains(unwrapped(r.stdout+r.stderr), unwrapped(text)) {
			r.Errorf("%s doesn't say %q:\n%s%s", r.line, text, r.stdout, r.stderr)
		}
	}
	return r
}

func (r result) decode(v any) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.stdout), v); err != nil {
		r.Fatalf("%s prints no JSON: %v\n%s%s", r.line, err, r.stdout, r.stderr)
	}
}

// machine is the network of the machine itself.
type machine struct{}

func (machine) Listen(network, addr string) (net.Listener, error) { return net.Listen(network, addr) }
func (machine) ListenPacket(network, addr string) (net.PacketConn, error) {
	return net.ListenPacket(network, addr)
}

// echo starts a backend that goes with the test.
func echo(t *testing.T, network, name, addr string) {
	t.Helper()
	start := standin.StartTCPEcho
	if network == "udp" {
		start = standin.StartUDPEcho
	}
	e, err := start(machine{}, name, netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
}

// exchange has the client send a line and returns what it reports.
func exchange(t *testing.T, mode clients.Mode, addr string, opts ...clients.Option) clients.Exchange {
	t.Helper()
	var args []string
	for _, o := range opts {
		args = append(args, string(o))
	}
	cmd := exec.CommandContext(t.Context(), "/bin/client", append(args, string(mode), addr, "hello")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run %q: %v\n%s%s", cmd.Args, err, out, &stderr)
	}
	var e clients.Exchange
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatalf("the client printed %q: %v", out, err)
	}
	return e
}

// unwrapped is a text as it was before it was broken into lines.
func unwrapped(text string) string { return strings.Join(strings.Fields(text), " ") }
