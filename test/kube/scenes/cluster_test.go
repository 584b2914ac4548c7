package scenes

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/test/lab"
)

// bed is a cluster of three nodes, the first of which is the control plane.
type bed struct {
	*testing.T
	c     *nodes.Cluster
	first *nodes.Node
	all   []*nodes.Node
}

// newBed makes one that has a kube-proxy in a mode, or none where that is "".
func newBed(t *testing.T, mode string) *bed {
	t.Helper()
	c := nodes.New(t)
	b := &bed{T: t, c: c, all: []*nodes.Node{c.Node("n1"), c.Node("n2"), c.Node("n3")}}
	b.first = b.all[0]
	flags := []string{skipKubeProxy}
	if mode != "" {
		for _, n := range b.all {
			n.Import("kube-proxy")
		}
		c.InitConfig, flags = nodes.KubeProxyConfig(mode), nil
	}
	b.first.Kubeadm("init", flags...)
	for _, n := range b.all[1:] {
		n.Kubeadm("join")
	}
	for _, n := range b.all {
		n.Import("firsthop-next")
	}
	b.first.Await("all nodes are ready", "kubectl wait --for=condition=Ready nodes --all --timeout=5s && test $(kubectl get nodes -o name | wc -l) = 3")
	return b
}

// load connects on every node.
func (b *bed) load() (loads []*nodes.Load) {
	b.Helper()
	for i, n := range b.all {
		targets := append([]string{"connect=" + nodes.API, "hold=" + nodes.API}, loadOfEcho...)
		if i == 0 { // it has the administrator's credentials
			targets = loadOfBoth
		}
		loads = append(loads, n.Load(targets...))
	}
	return loads
}

func awaitLoads(loads []*nodes.Load, n int) {
	for _, l := range loads {
		l.Await(n)
	}
}

// report is what of the commands' reports is looked at.
type report struct {
	Result   string
	Sentence string
	ExitCode int `json:"exit_code"`
	Changes  []string
	Refusals []string
	Log      []string
	Oddities []string
	Nodes    []struct{ Name, Grade, Reason string }
}

// cluster runs a command of `firsthop cluster` on the first node.
func (b *bed) cluster(line string) (r report, text string) {
	b.Helper()
	text, _ = b.first.Try("firsthop cluster " + line + " -o json 2>/dev/null")
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		b.Fatalf("firsthop cluster %s: %v\n%s", line, err, text)
	}
	return r, text
}

// want runs a command and wants its result, and texts in its report.
func (b *bed) want(result, line string, says ...string) report {
	b.Helper()
	r, text := b.cluster(line)
	if r.Result != result {
		b.Fatalf("firsthop cluster %s: want %s, got\n%s", line, result, text)
	}
	for _, s := range says {
		if !strings.Contains(text, s) {
			b.Errorf("firsthop cluster %s does not say %q:\n%s", line, s, text)
		}
	}
	return r
}

// listed are all objects of the cluster that install could have to do with, with what somebody wrote into them. Not those
// that change all the time.
func (b *bed) listed() map[string]string {
	b.Helper()
	kinds := strings.Fields(b.first.Sh("kubectl api-resources --verbs=list -o name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool {
		return slices.ContainsFunc([]string{"events", "leases.", "endpoint", "componentstatuses"}, func(out string) bool { return strings.HasPrefix(kind, out) })
	})
	var list struct{ Items []map[string]any }
	text := b.first.Sh("kubectl get " + strings.Join(kinds, ",") + " -A -o json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		b.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range list.Items {
		meta := o["metadata"].(map[string]any)
		key := fmt.Sprint(o["kind"], " ", meta["namespace"], "/", meta["name"])
		written := map[string]any{"labels": meta["labels"], "annotations": meta["annotations"]}
		if o["kind"] == "Node" { // the runtime's condition is a trace
			for _, c := range o["status"].(map[string]any)["conditions"].([]any) {
				written["condition "+fmt.Sprint(c.(map[string]any)["type"])] = true
			}
		}
		for k, v := range o {
			if k != "metadata" && k != "status" {
				written[k] = v
			}
		}
		data, err := json.Marshal(written)
		if err != nil {
			b.Fatal(err)
		}
		out[key] = string(data)
	}
	return out
}

// differences of two maps, in words.
func differences(before, after map[string]string) (out []string) {
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if now, there := after[key]; !there {
			out = append(out, key+" is gone")
		} else if now != before[key] {
			out = append(out, fmt.Sprintf("%s was %s and is %s", key, before[key], now))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if _, was := before[key]; !was {
			out = append(out, key+" is new: "+after[key])
		}
	}
	return out
}

// awaitListed waits until the cluster's objects are what they were: what was deleted goes a while later.
func (b *bed) awaitListed(before map[string]string) {
	b.Helper()
	var left []string
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if left = differences(before, b.listed()); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, d := range left {
		b.Error(d)
	}
}

// versions are the resource versions of all that install writes, and of its pods.
func (b *bed) versions() map[string]string {
	b.Helper()
	text := b.first.Sh(`kubectl get -A sa,cm,ds,pod,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding -o json`)
	var list struct{ Items []map[string]any }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		b.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range list.Items {
		meta := o["metadata"].(map[string]any)
		if strings.HasPrefix(meta["name"].(string), "firsthop") {
			out[fmt.Sprint(o["kind"], " ", meta["name"])] = fmt.Sprint(meta["resourceVersion"])
		}
	}
	return out
}

// ended are the objects of an install, without what tells one run from another: the names of pods.
func (b *bed) ended() map[string]string {
	b.Helper()
	out := map[string]string{}
	for key, text := range b.listed() {
		if strings.HasPrefix(key, "Pod ") || strings.HasPrefix(key, "ControllerRevision ") {
			continue
		}
		if strings.HasPrefix(key, "DaemonSet ") { // counts of changes
			var o map[string]any
			if err := json.Unmarshal([]byte(text), &o); err != nil {
				b.Fatal(err)
			}
			delete(o, "annotations")
			data, _ := json.Marshal(o) // it was JSON
			text = string(data)
		}
		out[key] = text
	}
	return out
}

// traces of all nodes.
func (b *bed) traces() map[string]string {
	b.Helper()
	out := map[string]string{}
	for _, n := range b.all {
		for _, line := range n.Traces() {
			what, value, _ := strings.Cut(line, " = ")
			out[n.Name+" "+what] = value
		}
	}
	return out
}

// killed runs a command and kills it at some instant, again and again. Each time it is run anew.
func (b *bed) killed(times int, line string, longest time.Duration) {
	b.Helper()
	for range times {
		after := time.Duration(rand.Int64N(int64(longest)))
		_, err := b.first.Try(fmt.Sprintf("timeout -s KILL %.2f firsthop cluster %s", after.Seconds(), line))
		b.Logf("firsthop cluster %s was killed after %v: %v", line, after.Round(10*time.Millisecond), err)
	}
}

// TestClusterInstall brings firsthop to a cluster by one command, and takes it away by another.
func TestClusterInstall(t *testing.T) {
	t.Run("without kube-proxy", func(t *testing.T) {
		b := newBed(t, "")
		before, traces := b.listed(), b.traces()

		b.installs()
		awaitCoreDNS(b.first)
		deployEcho(b.first)
		for _, n := range b.all {
			awaitEcho(n)
		}
		loads := b.load()
		b.again()
		b.upgrades()
		awaitLoads(loads, 1000)
		for _, l := range loads {
			l.Unbroken()
		}

		b.want("fail", "uninstall", "nothing else serves Service addresses there", "nothing was changed")
		b.first.Sh("kubectl delete -f /root/echo.yaml --wait")
		b.first.Sh("rm /root/echo.yaml")
		b.want("ok", "uninstall --force", "firsthop is gone from 3 of 3 nodes")
		b.awaitListed(before)
		b.same(traces)
	})
	t.Run("beside kube-proxy", func(t *testing.T) {
		long(t)
		b := newBed(t, "nftables")
		awaitCoreDNS(b.first)
		deployEcho(b.first)
		for _, n := range b.all {
			awaitEcho(n)
		}
		before, traces := b.listed(), b.traces()
		loads := b.load()
		awaitLoads(loads, 100)

		b.refuses()
		b.same(traces)
		b.installs()
		b.again()
		b.upgrades()
		b.losesKubelet()
		after := b.ended()

		b.killed(6, "uninstall", 6*time.Second)
		b.want("ok", "uninstall")
		b.awaitListed(before)
		b.same(traces)
		b.killed(8, "install", 12*time.Second)
		b.killed(6, "install --image "+nodes.NextImage, 8*time.Second)
		b.want("ok", "install", "3 of 3 nodes serve")
		for _, d := range differences(after, b.ended()) {
			t.Error("killed and run again: ", d)
		}
		b.want("ok", "uninstall")
		b.awaitListed(before)
		b.same(traces)
		awaitLoads(loads, 100)
		for _, l := range loads {
			l.Unbroken()
		}
	})
}

// refuses tries what install refuses on a real cluster: nothing is changed.
func (b *bed) refuses() {
	b.Helper()
	before := b.listed()
	b.first.Sh("kubectl label namespace kube-system pod-security.kubernetes.io/enforce=baseline")
	b.want("fail", "install", "pods like those of firsthop are refused", "PodSecurity", "nothing was changed")
	b.first.Sh("kubectl label namespace kube-system pod-security.kubernetes.io/enforce-")
	b.first.Sh("kubectl -n kube-system create configmap cilium-config --from-literal=kube-proxy-replacement=true")
	b.want("fail", "install", "Cilium", "nothing was changed")
	b.first.Sh("kubectl -n kube-system delete configmap cilium-config")
	b.want("fail", "install --image ghcr.io/firsthop/firsthop:absent", "its pod can't start", "nothing was changed")

	own := b.all[2]
	own.Sh("firsthop init")
	own.Sh("systemd-run --unit=own-runtime --property=Restart=no firsthop run --kubeconfig /etc/kubernetes/kubelet.conf --node-name n3")
	own.Await("its own runtime runs", "firsthop status -o json | grep -q '\"runtime\"'")
	b.want("fail", "install", "a runtime of the host's own serves it", "--leave-out n3", "nothing was changed")
	own.Sh("systemctl stop own-runtime")
	own.Sh("firsthop uninstall")
	b.awaitListed(before)
}

// losesKubelet stops the kubelet of a node, which is served on, but says nothing any more.
func (b *bed) losesKubelet() {
	b.Helper()
	lost := b.all[2]
	lost.Sh("systemctl stop kubelet")
	b.first.Await("the cluster misses the node", "kubectl get node n3 -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}' | grep Unknown")
	if r := b.want("fail", "status", "the node is unreachable"); r.ExitCode != 6 {
		b.Errorf("status exits %d, want 6", r.ExitCode)
	}
	b.want("fail", "install", "node n3 is unreachable", "--leave-out n3", "nothing was changed")
	b.want("fail", "uninstall", "node n3 is unreachable", "--leave-out n3", "nothing was changed")
	lost.Sh("systemctl start kubelet")
	b.first.Await("the node is back", "kubectl wait --for=condition=Ready node/n3 --timeout=5s && test -z \"$(kubectl get node n3 -o jsonpath='{.spec.taints}')\"")
	b.first.Await("nothing is wrong", "firsthop cluster status")
}

// installs runs the command that a user would, and shows what it says.
func (b *bed) installs() {
	b.Helper()
	began := time.Now()
	text := b.first.Sh("firsthop cluster install")
	b.Logf("three nodes were served after %v:\n%s", time.Since(began).Round(100*time.Millisecond), text)
	b.first.Await("nothing is wrong", "firsthop cluster status -o json | grep -q '^  \"result\": \"ok\"'") // on a busy machine a probe may come late
}

// again runs install a second time: nothing changes.
func (b *bed) again() {
	b.Helper()
	awaitDaemonSet(b.first, "firsthop")
	b.first.Await("the controllers have looked at the policy", "kubectl get validatingadmissionpolicy firsthop-own-node -o jsonpath='{.status.observedGeneration}' | grep -q .")
	var versions map[string]string
	lab.Await(b, "no more change of the objects", func() bool { // their status follows
		former := versions
		versions = b.versions()
		return maps.Equal(former, versions)
	})
	if r := b.want("ok", "install"); len(r.Changes) > 0 {
		b.Errorf("the second run changed %q", r.Changes)
	}
	for _, d := range differences(versions, b.versions()) {
		b.Error("a second run: ", d)
	}
}

// upgrades brings another version, one that fails at the first node, and the present one again.
func (b *bed) upgrades() {
	b.Helper()
	b.want("ok", "install --image "+nodes.NextImage, "3 of 3 nodes serve")
	r := b.want("fail", "install --image ghcr.io/firsthop/firsthop:absent --wait 90s", "and the roll-out stops there", "kubectl -n kube-system logs")
	b.Logf("an image that is absent: %s", r.Sentence)
	b.want("warn", "status", "an upgrade was interrupted")
	b.want("ok", "install", "3 of 3 nodes serve")
}

// same waits until the nodes' hosts are what they were.
func (b *bed) same(before map[string]string) {
	b.Helper()
	var left []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) {
		if left = differences(before, b.traces()); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, d := range left {
		b.Error(d)
	}
}
