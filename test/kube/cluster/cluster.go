package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/firsthop/firsthop/test/apitest"
	"github.com/firsthop/firsthop/test/kube/binaries"
	"github.com/firsthop/firsthop/test/lab"
)

// The addresses of a cluster. See the package comment.
var (
	ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	PodCIDRs     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
	// ServiceIP is that of default/kubernetes.
	ServiceIP = netip.MustParseAddr("10.96.0.1")
)

// serverPort is where every API server listens.
const serverPort = 6443

// patience is how long anything may take on a machine that is busy with other tests.
const patience = 3 * time.Minute

// Config says what cluster to make.
type Config struct {
	// Servers is how many API servers to start; 0 is one.
	Servers int
	// Flags are more flags for each API server. They win over those that New chooses.
	Flags []string
}

// Cluster is a control plane that runs. Its methods fail the test that made it. They are safe for concurrent use, but
// for AddNode and AddClient.
type Cluster struct {
	Hub     *lab.Lab
	Servers []*Server
	// Client is an administrator's, with the first API server, without a limit of requests.
	Client kubernetes.Interface

	t        testing.TB
	programs binaries.Programs
	ca       *apitest.CA
	nodes    int
	clients  int
}

// New starts a cluster that ends with the test. It takes seconds for the first API server and 280 MB for each. It skips
// the test when the user is not root.
func New(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := &Cluster{t: t, programs: programs(t), ca: apitest.NewCA(t)}
	c.Hub = lab.New(t)
	c.must(c.makeBridge())
	c.startEtcd()
	for i := range max(1, cfg.Servers) {
		s := c.newServer(i, cfg.Flags)
		c.Servers = append(c.Servers, s)
		s.launch()
	}
	c.Client = c.ClientOf(Admin, c.Servers[0])
	for _, s := range c.Servers {
		s.AwaitReady()
		s.awaitAdvertised()
	}
	return c
}

// must ends the test on an error.
func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// programs returns what make has built, or builds it.
func programs(t testing.TB) binaries.Programs {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	module := filepath.Dir(filepath.Dir(file))
	p, err := binaries.Ensure(t.Context(), binaries.Config{
		Given:  os.Getenv(apitest.KubeBin),
		Module: module,
		Cache:  filepath.Join(module, "../../.cache/kube"),
		Log:    os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// startEtcd starts etcd on the hub's loopback, where only the API servers reach it.
func (c *Cluster) startEtcd() {
	dir := filepath.Join(c.Hub.Dir, "etcd")
	c.must(os.Mkdir(dir, 0o700))
	c.start(c.Hub, "etcd", c.programs.Etcd, "--data-dir="+dir,
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // what is lost with the machine's power is lost with the test
		"--log-level=warn")
}

const etcdURL = "http://127.0.0.1:2379"

// await waits until a condition holds, and fails the test with its last answer when it does not come to hold.
func (c *Cluster) await(what string, condition func(ctx context.Context) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := poll(ctx, condition); err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// poll asks again until a condition holds or the context ends; then it returns the condition's last answer.
func poll(ctx context.Context, condition func(ctx context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
