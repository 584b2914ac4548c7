package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// update rewrites the expected output of testdata/script: go test ./cmd/firsthop -run Script -update
var update = flag.Bool("update", false, "write the expected output of testdata/script anew")

// firsthop is the program as users have it: built once, without cgo and without the race detector.
var firsthop string

// client is the program of test/clients.
var client string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if keep := os.Getenv(keepCaps); keep != "" {
		fmt.Fprintln(os.Stderr, becomeWithout(keep, os.Args))
		return 125
	}
	if os.Getenv(noRandomness) != "" {
		fmt.Fprintln(os.Stderr, becomeWithoutRandomness(os.Args))
		return 125
	}
	flag.Parse()
	dir, err := os.MkdirTemp("", "fh-cmd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // some tests run it as nobody
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	firsthop, client = filepath.Join(dir, "firsthop"), filepath.Join(dir, "client")
	for path, pkg := range map[string]string{firsthop: ".", client: "github.com/firsthop/firsthop/test/clients/client"} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	// The tests' own processes must not be told where an API server is.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "FIRSTHOP_") || strings.HasPrefix(name, "KUBERNETES_") {
			os.Unsetenv(name)
		}
	}
	return lab.RunMain(m)
}

// The addresses that the tests use, as "How to use" in README.md has them.
const (
	vip4, vip6         = "10.96.0.1:443", "[fd00:96::1]:443"
	vips               = vip4 + "," + vip6
	server4, server6   = "127.0.0.1:6443", "[::1]:6443"
	servers            = server4 + "," + server6
	varVIPs, varServer = "KUBERNETES_SERVICE_IPS_PORTS", "KUBERNETES_APISERVER_ENDPOINTS"
)

// node is a machine on which firsthop is tried.
type node struct {
	*testing.T
	*lab.Lab
	// These stand before those of the lab, so that a test can choose others.
	BPFFS, StateDir, RunDir string
	// inside makes firsthop itself a process of the lab's cgroup, as on a real node; else it connects by a child.
	inside bool
}

func newNode(t *testing.T, opts ...lab.Option) node {
	t.Helper()
	l := lab.New(t, opts...)
	return node{T: t, Lab: l, BPFFS: l.BPFFS, StateDir: l.StateDir, RunDir: l.RunDir}
}

// result is how a run of firsthop ended.
type result struct {
	*testing.T
	args           []string
	code           int
	stdout, stderr string
	cpu            time.Duration // processor time that it used
}

// command prepares firsthop with this instance's flags after the command's name.
func (n node) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	args = append([]string{args[0], "--bpffs", n.BPFFS, "--cgroup", n.Cgroup, "--state-dir", n.StateDir, "--run-dir", n.RunDir}, args[1:]...)
	if n.inside {
		cmd := n.Command(ctx, firsthop, args...).Cmd
		cmd.Env = withEnv(env)
		return cmd
	}
	cmd := exec.CommandContext(ctx, firsthop, args...)
	cmd.Env = withEnv(env)
	return cmd
}

// start starts a command that this node has prepared, in its network namespace.
func (n node) start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

func withEnv(env []string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH")}, env...)
}

// run runs firsthop on the node, with settings of the environment before the command: "NAME=value", …, "init".
func (n node) run(args ...string) result {
	n.Helper()
	return n.runWith(n.Context(), args...)
}

func (n node) runWith(ctx context.Context, args ...string) result {
	n.Helper()
	env, args := splitEnv(args)
	cmd := n.command(ctx, env, args...)
	return finish(n.T, cmd, func() error { return n.start(cmd) })
}

// plain runs firsthop without a node: nothing that needs one is to happen.
func plain(t *testing.T, args ...string) result {
	t.Helper()
	env, args := splitEnv(args)
	cmd := exec.CommandContext(t.Context(), firsthop, args...)
	cmd.Env = withEnv(env)
	return finish(t, cmd, cmd.Start)
}

func finish(t *testing.T, cmd *exec.Cmd, start func() error) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %q: %v", cmd.Args, err)
	}
	return result{T: t, args: cmd.Args[1:], code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(),
		cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
}

// exits wants an exit code.
func (r result) exits(code bootstrap.ExitCode) result {
	r.Helper()
	if r.code != int(code) {
		r.Fatalf("firsthop %s: exit code %d, want %d\n%s%s", strings.Join(r.args, " "), r.code, code, r.stdout, r.stderr)
	}
	return r
}

// says wants texts in the output, wherever.
func (r result) says(texts ...string) result {
	r.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) && !strings.Contains(unwrapped(r.stdout+r.stderr), unwrapped(text)) {
			r.Errorf("firsthop %s doesn't say %q:\n%s%s", strings.Join(r.args, " "), text, r.stdout, r.stderr)
		}
	}
	return r
}

// report reads the JSON report of a run with -o json.
func (r result) report() *bootstrap.Report {
	r.Helper()
	var rep bootstrap.Report
	r.decode(&rep)
	return &rep
}

func (r result) decode(v any) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.stdout), v); err != nil {
		r.Fatalf("firsthop %s prints no JSON: %v\n%s%s", strings.Join(r.args, " "), err, r.stdout, r.stderr)
	}
}

// serving starts an API server stand-in on the usual addresses and returns the settings that lead there.
func (n node) serving() *standin.APIServer {
	n.Helper()
	return n.serve("one", server4, server6)
}

// serve starts an API server stand-in; the CA certificate of the last one is in the lab's ca.crt.
func (n node) serve(name string, addrs ...string) *standin.APIServer {
	n.Helper()
	ca, err := standin.NewAuthority(netip.MustParseAddrPort(vip4).Addr(), netip.MustParseAddrPort(vip6).Addr())
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "ca.crt"), ca.PEM(), 0o644); err != nil {
		n.Fatal(err)
	}
	cfg := standin.APIServerConfig{Name: name, Network: n.Lab, Authority: ca}
	for _, a := range addrs {
		cfg.Addrs = append(cfg.Addrs, netip.MustParseAddrPort(a))
	}
	s, err := standin.StartAPIServer(cfg)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(s.Close)
	return s
}

// initArgs is the command line of the usual init, with more flags.
func initArgs(more ...string) []string {
	return append([]string{"init", "--service-ips", vips, "--endpoints", servers, "--persist", "off"}, more...)
}

// init runs the usual init, which must succeed, and returns its report.
func (n node) init(more ...string) *bootstrap.Report {
	n.Helper()
	return n.run(append(initArgs(more...), "-o", "json")...).exits(bootstrap.ExitOK).report()
}

// splitEnv takes the settings of the environment off a command line. No command and no flag looks like one.
func splitEnv(args []string) (env, rest []string) {
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	return env, args
}

// unwrapped is a text as it was before it was broken into lines.
func unwrapped(text string) string { return strings.Join(strings.Fields(text), " ") }
