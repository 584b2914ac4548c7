package running

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) {
	os.Exit(lab.RunMain(m))
}

// patience bounds every wait for what is to come.
const patience = time.Minute

// long tells whether there is time for tests that take more than CI has.
func long() bool { return os.Getenv("FIRSTHOP_TEST_LONG") != "" }

// programs are built once for all tests of the package.
var programs = sync.OnceValues(func() (dir string, err error) {
	_, file, _, _ := runtime.Caller(0)
	here := filepath.Dir(file)
	// The product is built by its own module: this one's dependencies are newer.
	dir = filepath.Join(here, "../../../.cache/running")
	for _, b := range []struct{ in, out, pkg string }{
		{filepath.Join(here, "../../.."), "firsthop", "./cmd/firsthop"},
		{here, "prober", "./probe/prober"},
		{filepath.Join(here, "../../.."), "client", "./test/clients/client"},
	} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-o", filepath.Join(dir, b.out), b.pkg)
		cmd.Dir, cmd.Env = b.in, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", b.pkg, err, out)
		}
	}
	return dir, nil
})

func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// node is a node with firsthop.
type node struct {
	*cluster.Node
	t          testing.TB
	kubeconfig string
	firsthop   string
	run        *cluster.Process // nil: it isn't running
	runs       int
}

// vip is that of the API service.
const vip = "10.96.0.1:443"

func newNode(t testing.TB, c *cluster.Cluster, name, zone string) *node {
	t.Helper()
	n := &node{Node: c.AddNode(cluster.NodeConfig{Name: name, Zone: zone}), t: t, firsthop: program(t, "firsthop")}
	bindRole(t, c)
	n.kubeconfig = c.Kubeconfig(c.ServiceAccount("kube-system", "firsthop", role), "https://"+vip)
	return n
}

// role is the ClusterRole of the runtime, as deploy has it.
const role = "firsthop"

// bindRole makes the cluster have it.
func bindRole(t testing.TB, c *cluster.Cluster) {
	t.Helper()
	data, err := os.ReadFile("../../../deploy/runtime/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var r rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(doc), &r); err != nil {
			t.Fatal(err)
		}
		if r.Kind != "ClusterRole" || r.Name != role {
			continue
		}
		_, err := c.Client.RbacV1().ClusterRoles().Create(t.Context(), &r, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("deploy has no ClusterRole", role)
}

// command runs firsthop on the node to its end, and returns its output and exit code.
func (n *node) command(args ...string) (string, int) {
	n.t.Helper()
	args = append([]string{args[0]}, append(n.Flags(), args[1:]...)...)
	out, err := n.Command(n.t.Context(), n.firsthop, args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return string(out), 0
}

// init makes the API service work, by the given API servers.
func (n *node) init(servers []*cluster.Server, more ...string) {
	n.t.Helper()
	var at []string
	for _, s := range servers {
		at = append(at, s.Address.String())
	}
	args := append([]string{"init", "--service-ips=" + vip, "--endpoints=" + strings.Join(at, ",")}, more...)
	if out, code := n.command(args...); code != 0 {
		n.t.Fatalf("firsthop init: exit code %d\n%s", code, out)
	}
}

// start starts the runtime, which goes on by itself.
func (n *node) start(more ...string) {
	n.t.Helper()
	n.runs++
	args := append([]string{"run"}, n.Flags()...)
	args = append(args, "--kubeconfig="+n.kubeconfig, "--node-name="+n.Name, "--log-level=debug",
		"--healthz-bind-address=off", "--metrics-bind-address=off")
	n.run = n.Start(fmt.Sprintf("firsthop-run-%d", n.runs), n.firsthop, append(args, more...)...)
}

// stop asks the runtime to end.
func (n *node) stop() {
	n.t.Helper()
	if err := n.run.Stop(); err != nil {
		n.t.Errorf("the runtime was asked to end: %v, want exit code 0", err)
	}
	n.run = nil
}

// log is what the present runtime has written.
func (n *node) log() string {
	data, err := os.ReadFile(n.run.Log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// entry is a Service of the table, as `firsthop nat` tells.
type entry struct {
	Index     uint32
	Owner     string
	Frontends []string
	Backends  []netip.AddrPort
}

// table is what the node's NAT table holds.
func (n *node) table() []entry {
	n.t.Helper()
	out, code := n.command("nat", "-o", "json")
	if code != 0 {
		n.t.Fatalf("firsthop nat: exit code %d\n%s", code, out)
	}
	var list []entry
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		n.t.Fatalf("firsthop nat printed %q: %v", out, err)
	}
	return list
}

// eventually waits until a condition holds, which says in words what is missing.
func eventually(t testing.TB, what string, condition func() (missing string)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		missing := condition()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, missing)
		}
	}
}
