package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/kube/binaries"
	"github.com/firsthop/firsthop/test/kube/e2e/expected"
	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/test/lab"
)

var (
	proxy = flag.String("proxy", "firsthop", "who serves Services: firsthop or kube-proxy")
	focus = flag.String("focus", everything, "regular expression of the names of tests to run")
	procs = flag.Int("procs", 4, "how many tests run at once")
)

// everything is the focus of a whole run.
const everything = `\[sig-network\]`

// leftOut are tests that such a cluster can't run, or for which it would have to be alone.
var leftOut = []string{
	`\[Feature:`,     // what a cluster need not have
	`\[Disruptive\]`, // stops what the others use
	`\[Serial\]`,     //
	`SCTP`,           // the kernel may have none
	`LoadBalancers`,  // of a cloud
	`\[GCE`, ` GCE`,  //
	`Internet`,    // there is none
	`Forward PTR`, // asks name servers of the internet
}

// mode is the kube-proxy that firsthop is compared with.
const mode = "nftables"

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func TestNetwork(t *testing.T) {
	if !slices.Contains([]string{"firsthop", "kube-proxy"}, *proxy) {
		t.Fatalf("-proxy %s: want firsthop or kube-proxy", *proxy)
	}
	text, err := os.ReadFile(filepath.Join("testdata", *proxy+".txt"))
	must(t, err)
	list, err := expected.Parse(string(text))
	must(t, err)

	c := nodes.New(t)
	programs, err := binaries.EnsureE2E(t.Context(), c.Build())
	must(t, err)
	archive, err := ensureImages(t.Context(), c.Build().Cache, programs, c.Program("coredns"), os.Stderr)
	must(t, err)
	c.Binds[programs], c.Binds[filepath.Dir(archive)] = "opt/e2e", "opt/e2e-images"
	first := startCluster(t, c, "/opt/e2e-images/"+filepath.Base(archive))

	fmt.Fprintf(os.Stderr, "running Kubernetes' tests with %s, %d at once: a whole run takes twenty minutes\n", *proxy, *procs)
	err = first.Stream(os.Stderr, strings.Join([]string{
		"cd /root && exec /opt/e2e/ginkgo --no-color --silence-skips --timeout=3h --procs=" + fmt.Sprint(*procs),
		"--output-dir=/root --json-report=report.json --focus='" + *focus + "' --skip='" + strings.Join(leftOut, "|") + "'",
		"/opt/e2e/e2e.test -- --provider=skeleton --num-nodes=3 --kubeconfig=/etc/kubernetes/admin.conf --disable-log-dump",
	}, " "))
	report, reportErr := first.Try("cat /root/report.json")
	if reportErr != nil {
		t.Fatalf("the suite ended without a report: %v", err)
	}
	results, err := expected.ReadReport([]byte(report))
	must(t, err)
	t.Log(results)
	for name, why := range results.Skipped {
		t.Logf("skipped itself: %s: %s", name, why)
	}
	for _, difference := range list.Differences(results, *focus == everything) {
		t.Error(difference)
	}
}

// startCluster makes a cluster of three nodes, in which Services are served by who is to be judged.
func startCluster(t *testing.T, c *nodes.Cluster, images string) *nodes.Node {
	t.Helper()
	var all []*nodes.Node
	for _, name := range []string{"n1", "n2", "n3"} {
		n := c.Node(name)
		n.ImportFile(images)
		all = append(all, n)
	}
	first := all[0]
	if *proxy == "kube-proxy" {
		for _, n := range all {
			n.Import("kube-proxy")
		}
		c.InitConfig = nodes.KubeProxyConfig(mode)
		first.Kubeadm("init")
	} else {
		first.Kubeadm("init", "--skip-phases=addon/kube-proxy")
	}
	for _, n := range all[1:] {
		n.Kubeadm("join")
	}
	if *proxy == "firsthop" {
		t.Log(first.Sh("firsthop cluster install"))
	}
	first.Await("all nodes are ready", "kubectl wait --for=condition=Ready nodes --all --timeout=5s && test $(kubectl get nodes -o name | wc -l) = 3")
	first.Await("CoreDNS is ready", "kubectl -n kube-system rollout status deployment/coredns --timeout=5s")
	first.Sh("kubectl label node n1 node-role.kubernetes.io/control-plane-") // the EndpointSlice controller gives such a node's zone no hints
	for i, n := range all {
		first.Sh(fmt.Sprintf("kubectl label node %s topology.kubernetes.io/zone=zone-%d", n.Name, i+1))
	}
	return first
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
