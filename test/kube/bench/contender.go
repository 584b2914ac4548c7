package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/test/kube/cluster"
)

// contender is a proxy with the node that it serves.
type contender struct {
	name   string
	t      testing.TB
	c      *cluster.Cluster
	binary string // firsthop's
	path   string // PATH for the proxy's own programs
	node   *cluster.Node
	source []netip.Addr // the client's addresses

	client *connector // in a pod of the node
	bare   *connector // in the pod's network namespace, but not in the node's cgroup; firsthop's only

	proc   *cluster.Process
	logged int64 // how long the log was when proc was started
}

// The addresses that accept, on every node: old ones and new ones.
var (
	oldBackends = []string{"10.244.250.1", "10.244.250.2"}
	newBackends = []string{"10.244.250.3", "10.244.250.4"}
)

// backendPort is where they accept.
const backendPort = 8080

// newContender makes the node, with a pod that connects and one that accepts.
func newContender(t testing.TB, c *cluster.Cluster, name, binary, connectorPath string) *contender {
	k := &contender{name: name, t: t, c: c, binary: binary, node: c.AddNode(cluster.NodeConfig{Name: name}), path: os.Getenv("PATH")}
	if _, variant, ok := strings.Cut(name, "-"); ok {
		k.path = findIPTables(t, variant) + ":" + k.path
	}
	k.source = []netip.Addr{k.node.Pod(1)[0], k.node.Pod(2)[0]}
	client, err := k.node.AddPod("client", k.source...)
	must(t, err)
	var addrs []netip.Addr
	for _, a := range append(append([]string{}, oldBackends...), newBackends...) {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	server, err := k.node.AddPod("server", addrs...)
	must(t, err)
	must(t, server.Do(func() error { return os.WriteFile("/proc/sys/net/core/somaxconn", []byte("65535"), 0) }))
	serve := server.Command(context.Background(), connectorPath,
		"serve", fmt.Sprint(backendPort), strings.Join(oldBackends, ","), strings.Join(newBackends, ","))
	serve.Stderr = os.Stderr
	must(t, serve.Start())
	t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })

	inside := client.Command(context.Background(), connectorPath, "connect")
	k.client = startConnector(t, inside.Cmd, inside.Start)
	if name == firsthop {
		outside := exec.Command(connectorPath, "connect")
		k.bare = startConnector(t, outside, func() error { return client.Do(outside.Start) })
	}
	return k
}

// findIPTables makes a directory with a variant of iptables, legacy or nft.
func findIPTables(t testing.TB, variant string) string {
	t.Helper()
	multi, err := exec.LookPath("xtables-" + variant + "-multi")
	must(t, err)
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, name := range []string{family, family + "-save", family + "-restore"} {
			must(t, os.Symlink(multi, filepath.Join(dir, name)))
		}
	}
	return dir
}

// start starts the proxy on a node that has nothing of it, and returns when that was, by CLOCK_MONOTONIC, and how long
// the init stage took before it.
func (k *contender) start() (at, initTook time.Duration) {
	k.t.Helper()
	if k.name != firsthop {
		mode, _, _ := strings.Cut(k.name, "-")
		k.t.Setenv("PATH", k.path) // the first of its programs that are found there
		at = monotonic()
		k.proc = k.node.StartKubeProxy(mode, "-v=2") // 2 is what its DaemonSet has; it tells when caches are synced
		return at, 0
	}
	begin := monotonic()
	k.run(k.binary, append([]string{"init", "--persist", "off"}, k.flags()...)...)
	at = monotonic()
	k.proc = k.node.Start("firsthop", k.binary, append([]string{"run", "--log-level", "debug",
		"--kubeconfig", k.c.Kubeconfig(account(k.t, k.c), k.c.Servers[0].URL()), "--node-name", k.node.Name}, k.flags()...)...)
	return at, at - begin
}

func (k *contender) flags() []string {
	return append([]string{"--service-ips", cluster.ServiceIP.String() + ":443", "--endpoints", k.c.Servers[0].Address.String()}, k.node.Flags()...)
}

// stop ends the proxy and removes all that it has programmed.
func (k *contender) stop() {
	k.t.Helper()
	if k.proc == nil {
		return
	}
	if err := k.proc.Stop(); err != nil && k.name == firsthop {
		k.t.Errorf("%s ended with %v", k.name, err)
	}
	if info, err := os.Stat(k.proc.Log); err == nil {
		k.logged = info.Size()
	}
	k.proc = nil
	if k.name == firsthop {
		k.run(k.binary, append([]string{"uninstall", "--force"}, k.node.Flags()...)...)
	} else if k.name != iptablesNFT { // that one takes as long to clean up, and is not started again
		k.t.Setenv("PATH", k.path)
		k.run(k.c.ProgramDir()+"/kube-proxy", "--cleanup")
	}
	k.flush()
}

// run runs a program on the node to its end.
func (k *contender) run(name string, args ...string) {
	k.t.Helper()
	out, err := k.node.Command(k.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), args[0], err, out)
	}
}

// flush makes the node forget all connections: those to a backend itself and those that were led there from a Service
// would clash in conntrack, where both have the same addresses and, by chance, port.
func (k *contender) flush() {
	k.t.Helper()
	ns, err := netns.GetFromPath(k.node.Netns)
	must(k.t, err)
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	must(k.t, err)
	defer nl.Close()
	if err := nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		k.t.Fatalf("flush connections of %s: %v", k.name, err)
	}
}

// account is who firsthop is, with the rights that deploy gives it.
func account(t testing.TB, c *cluster.Cluster) cluster.Identity {
	t.Helper()
	data, err := os.ReadFile("../../../deploy/runtime/rbac.yaml")
	must(t, err)
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var role rbacv1.ClusterRole
		must(t, yaml.Unmarshal([]byte(doc), &role))
		if role.Kind != "ClusterRole" || role.Name != firsthop {
			continue
		}
		_, err := c.Client.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			must(t, err)
		}
	}
	return c.ServiceAccount("kube-system", firsthop, firsthop)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// monotonic is CLOCK_MONOTONIC, which all processes share.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every kernel has it
	}
	return time.Duration(ts.Nano())
}
