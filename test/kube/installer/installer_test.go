package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applyadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/rest"

	installer "github.com/firsthop/firsthop/bootstrap/cluster"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/deploy"
	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// bed is a cluster of three nodes, of which kube-proxy serves each.
type bed struct {
	*testing.T
	c *cluster.Cluster
	p *player
}

func newBed(t *testing.T) *bed {
	c := cluster.New(t, cluster.Config{})
	b := &bed{t, c, play(t, c.Client)}
	_, err := c.Client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	b.must(err)
	for _, name := range []string{"cp1", "w1", "w2"} {
		b.p.addNode(name, part{kubeProxy: true}, corev1.ConditionTrue)
	}
	return b
}

func (b *bed) on(t *testing.T) *bed { copied := *b; copied.T = t; return &copied }

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) config(change func(*installer.Config)) installer.Config {
	b.Helper()
	values, err := deploy.Defaults()
	b.must(err)
	cfg := installer.Config{REST: b.c.RESTConfig(cluster.Admin, b.c.Servers[0]), Version: "v1", Values: values, Patience: time.Minute}
	if change != nil {
		change(&cfg)
	}
	return cfg
}

// install runs it, and wants a result.
func (b *bed) install(want diagnose.Grade, change func(*installer.Config)) *installer.Report {
	b.Helper()
	rep, err := installer.Install(b.Context(), b.config(change))
	return b.wants(want, rep, err)
}

func (b *bed) uninstall(want diagnose.Grade, change func(*installer.Config)) *installer.Report {
	b.Helper()
	rep, err := installer.Uninstall(b.Context(), b.config(change))
	return b.wants(want, rep, err)
}

func (b *bed) wants(want diagnose.Grade, rep *installer.Report, err error) *installer.Report {
	b.Helper()
	b.must(err)
	if rep.Result != want {
		text, _ := json.MarshalIndent(rep, "", " ")
		b.Fatalf("want %s, got\n%s", want, text)
	}
	return rep
}

func (b *bed) says(rep *installer.Report, texts ...string) {
	b.Helper()
	all, _ := json.Marshal(rep)
	for _, text := range texts {
		if !strings.Contains(string(all), text) {
			b.Errorf("it does not say %q:\n%s", text, all)
		}
	}
}

// objects are all that an install may touch, by kind and name: what somebody wrote, or only the version.
func (b *bed) objects(content bool) map[string]string {
	b.Helper()
	out := map[string]string{}
	for _, path := range []string{
		"/api/v1/namespaces/kube-system/serviceaccounts", "/api/v1/namespaces/kube-system/configmaps", "/api/v1/namespaces/kube-system/pods", "/api/v1/nodes",
		"/apis/apps/v1/daemonsets", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
	} {
		text, err := b.c.Client.CoreV1().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(b.Context()).Raw()
		b.must(err)
		var list struct {
			Items []map[string]any `json:"items"`
		}
		b.must(json.Unmarshal(text, &list))
		for _, o := range list.Items {
			meta := o["metadata"].(map[string]any)
			key := path + "/" + meta["name"].(string)
			if strings.HasSuffix(path, "/pods") && strings.HasPrefix(meta["name"].(string), "firsthop-") {
				key = path + "/firsthop of " + fmt.Sprint(o["spec"].(map[string]any)["nodeName"])
			}
			if !content {
				out[key] = fmt.Sprint(meta["resourceVersion"])
				continue
			}
			kept := map[string]any{"labels": meta["labels"], "annotations": meta["annotations"]}
			delete2(kept["annotations"], appsv1.DeprecatedTemplateGeneration)
			delete2(kept["labels"], "pod-template-generation")
			for k, v := range o {
				if k != "metadata" && k != "status" {
					kept[k] = v
				}
			}
			data, err := json.Marshal(kept)
			b.must(err)
			out[key] = string(data)
		}
	}
	return out
}

func delete2(from any, key string) {
	if m, ok := from.(map[string]any); ok {
		delete(m, key)
	}
}

// same compares two results of objects.
func (b *bed) same(before, after map[string]string) {
	b.Helper()
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if before[key] != after[key] {
			b.Errorf("%s was\n%s\nand is\n%s", key, before[key], after[key])
		}
	}
	for key := range after {
		if _, was := before[key]; !was {
			b.Errorf("%s is new", key)
		}
	}
}

// settled waits until all pods are as the DaemonSet wants them.
func (b *bed) settled(nodes int) {
	b.Helper()
	lab.Await(b, "the pods to be as many as nodes", func() bool {
		pods, err := b.c.Client.CoreV1().Pods(namespace).List(b.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name in (firsthop, firsthop-once)"})
		b.must(err)
		return len(pods.Items) == nodes
	})
}

func TestInstallStatusUninstall(t *testing.T) {
	b := newBed(t)
	before := b.objects(true)

	dry := b.install(diagnose.OK, func(c *installer.Config) { c.DryRun = true })
	b.says(dry, "create DaemonSet firsthop", "create ClusterRole firsthop")
	b.same(before, b.objects(true))

	began := time.Now()
	rep := b.install(diagnose.OK, nil)
	t.Logf("installed on three nodes in %v", time.Since(began).Round(10*time.Millisecond))
	b.says(rep, "3 of 3 nodes serve every Service at connect time", "they need kube-proxy")
	if order := b.p.served(); !slices.Equal(order, []string{"w1", "w2", "cp1"}) && !slices.Equal(order, []string{"w1", "cp1", "w2"}) {
		t.Errorf("pods came to %q: a worker goes first, alone", order)
	}

	b.settled(3)
	// As kube-controller-manager does: Kubernetes then has another owner of fields of the policy.
	_, err := b.c.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().ApplyStatus(t.Context(),
		applyadmission.ValidatingAdmissionPolicy("firsthop-own-node").WithStatus(applyadmission.ValidatingAdmissionPolicyStatus().
			WithObservedGeneration(1).WithTypeChecking(applyadmission.TypeChecking())), metav1.ApplyOptions{FieldManager: "validatingadmissionpolicy-status", Force: true})
	b.must(err)
	versions := b.objects(false)
	again := b.install(diagnose.OK, nil)
	if len(again.Changes) != 0 {
		t.Errorf("the second run changed %q", again.Changes)
	}
	b.same(versions, b.objects(false))

	st, err := installer.ReadStatus(t.Context(), b.config(nil))
	b.must(err)
	if st.ExitCode != 0 || st.Result != diagnose.OK || len(st.Nodes) != 3 || !st.Nodes[0].ConnectTime.Proven || st.Nodes[0].PacketPath.Served || st.Version != "v1" {
		t.Errorf("%+v", st)
	}
	b.must(b.p.mark(t.Context(), "w2", "False", "ProofFailed", "no answer"))
	if st, err = installer.ReadStatus(t.Context(), b.config(nil)); err != nil || st.ExitCode != 6 || st.Nodes[2].Grade != diagnose.Fail {
		t.Errorf("%v: %+v", err, st)
	}
	b.must(b.p.mark(t.Context(), "w2", "True", "Serving", "ok; API servers: 1 of 2 ready, not 192.0.2.12:6443"))
	if st, err = installer.ReadStatus(t.Context(), b.config(nil)); err != nil || st.ExitCode != 0 || st.Nodes[2].ConnectTime.Message != "ok" || !strings.HasPrefix(st.Nodes[2].APIServers, "1 of 2 ready") {
		t.Errorf("%v: %+v", err, st)
	}
	if text := strings.Join(st.Oddities, "\n"); !strings.Contains(text, "node w2 sees 1 of 2 ready: API server 192.0.2.12:6443 is not ready there") {
		t.Errorf("%s", text)
	}

	t.Run("an upgrade reaches one node first", func(t *testing.T) {
		b := b.on(t)
		b.p.set("cp1", part{kubeProxy: true, init: 6})
		newer := func(c *installer.Config) { c.Values.Image = "ghcr.io/firsthop/firsthop:v2" }
		rep := b.install(diagnose.Fail, newer)
		b.says(rep, "node cp1 fails, and the roll-out stops there", "exit code 6")
		if order := b.p.served(); !slices.Equal(order, []string{"cp1"}) {
			t.Errorf("pods came to %q", order)
		}
		st, err := installer.ReadStatus(t.Context(), b.config(nil))
		b.must(err)
		if text, _ := json.Marshal(st.Oddities); !strings.Contains(string(text), "an upgrade was interrupted") {
			t.Errorf("%s", text)
		}
		b.p.set("cp1", part{kubeProxy: true})
		b.install(diagnose.OK, newer)
		b.install(diagnose.OK, nil) // and back
	})

	b.says(b.uninstall(diagnose.OK, func(c *installer.Config) { c.DryRun = true }), "remove DaemonSet firsthop")
	b.says(b.uninstall(diagnose.OK, nil), "firsthop is gone from this cluster", "firsthop is gone from 3 of 3 nodes")
	b.settled(0)
	b.same(before, b.objects(true))
	b.says(b.uninstall(diagnose.OK, nil), "nothing of firsthop's is in this cluster")
}

func TestInstallStopsAtTheFirstFailure(t *testing.T) {
	b := newBed(t)
	b.p.set("w1", part{kubeProxy: true, init: 6})
	rep := b.install(diagnose.Fail, nil)
	b.says(rep, "node w1 fails", "prove: failed: no answer", "kubectl -n kube-system logs", "--leave-out w1")
	if rep.ExitCode != 6 {
		t.Errorf("exit code %d", rep.ExitCode)
	}
	if order := b.p.served(); !slices.Equal(order, []string{"w1"}) {
		t.Errorf("pods came to %q", order)
	}
	t.Run("without that node", func(t *testing.T) {
		b := b.on(t)
		rep := b.install(diagnose.Warn, func(c *installer.Config) { c.LeaveOut = []string{"w1"} })
		b.says(rep, "2 of 3 nodes serve every Service at connect time, and have proven it; 1 are left out")
		b.p.set("w1", part{kubeProxy: true})
		b.p.served()
		b.says(b.install(diagnose.Warn, nil), "node w1 is left out, as before; --include w1 brings it in", "2 of 3 nodes")
		if order := b.p.served(); len(order) > 0 {
			t.Errorf("pods came to %q", order)
		}
		st, err := installer.ReadStatus(t.Context(), b.config(nil))
		b.must(err)
		if n := st.Nodes[1]; n.Name != "w1" || n.Grade != diagnose.Skip || !strings.Contains(n.Reason, "--include w1") {
			t.Errorf("%+v", n)
		}
	})
	t.Run("included again", func(t *testing.T) {
		b := b.on(t)
		include := func(c *installer.Config) { c.Include = []string{"w1"} }
		b.says(b.install(diagnose.OK, include), "3 of 3 nodes")
		b.says(b.install(diagnose.OK, nil), "3 of 3 nodes")
		b.says(b.install(diagnose.Fail, func(c *installer.Config) { c.Include = []string{"w9"} }), "--include w9: there is no such node")
		b.says(b.install(diagnose.Fail, func(c *installer.Config) { c.Include, c.LeaveOut = []string{"w1"}, []string{"w1"} }), "node w1 is to be left out and included")
	})
}

// bindOther has somebody else give firsthop's role to another account.
func (b *bed) bindOther() {
	b.Helper()
	const binding = `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"firsthop"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"firsthop"},"subjects":[{"kind":"ServiceAccount","name":"other","namespace":"kube-system"}]}`
	_, err := b.c.Client.RbacV1().ClusterRoleBindings().Patch(b.Context(), "firsthop", types.ApplyPatchType, []byte(binding), metav1.PatchOptions{FieldManager: "argocd"})
	b.must(err)
}

// TestSomebodyElseComesMeanwhile, after the look: it stops, and does not say that nothing was changed. Fields are taken over
// only by force.
func TestSomebodyElseComesMeanwhile(t *testing.T) {
	b := newBed(t)
	rep := b.install(diagnose.Fail, func(c *installer.Config) {
		c.Progress = func(s installer.Step) {
			if s.Step == "preflight" {
				b.bindOther()
			}
		}
	})
	b.says(rep, "stopped at ClusterRoleBinding firsthop", "argocd", "--force takes these fields over", "run it again")
	if strings.Contains(rep.Sentence, "nothing was changed") || len(rep.Changes) == 0 {
		t.Errorf("%q, with changes %q", rep.Sentence, rep.Changes)
	}
	b.says(b.install(diagnose.OK, func(c *installer.Config) { c.Force = true }), "3 of 3 nodes")
}

func TestRefusals(t *testing.T) {
	b := newBed(t)
	nobody := b.c.ServiceAccount("default", "nobody", "view")
	before := b.objects(true)
	refused := func(name string, prepare func(b *bed) (undo func()), change func(*installer.Config), says ...string) {
		t.Run(name, func(t *testing.T) {
			b := b.on(t)
			if prepare != nil {
				defer prepare(b)()
			}
			rep := b.install(diagnose.Fail, change)
			b.says(rep, append(says, "nothing was changed")...)
		})
		b.same(before, b.objects(true))
	}
	client := b.c.Client
	configMap := func(name, key, value string) func(*bed) func() {
		return func(b *bed) func() {
			_, err := client.CoreV1().ConfigMaps(namespace).Create(b.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{key: value}}, metav1.CreateOptions{})
			b.must(err)
			return func() {
				b.must(client.CoreV1().ConfigMaps(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}))
			}
		}
	}
	daemonSet := func(name string, c corev1.Container) func(*bed) func() {
		return func(b *bed) func() {
			labels := map[string]string{"x": name}
			c.Name, c.Image = "x", "x"
			_, err := client.AppsV1().DaemonSets(namespace).Create(b.Context(), &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DaemonSetSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{c}}},
			}}, metav1.CreateOptions{})
			b.must(err)
			return func() {
				b.must(client.AppsV1().DaemonSets(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}))
			}
		}
	}
	node := func(name string, p part) func(*bed) func() {
		return func(b *bed) func() {
			former := b.p.part(name)
			b.p.set(name, p)
			return func() { b.p.set(name, former) }
		}
	}
	refused("all rights that a user lacks are named at once", nil, func(c *installer.Config) {
		c.REST = b.c.RESTConfig(nobody, b.c.Servers[0])
	}, "lacks a right: list, patch nodes", "create, get, patch daemonsets.apps in namespace kube-system", "create, get, patch clusterroles.rbac.authorization.k8s.io", "get pods/log")
	refused("Cilium", configMap("cilium-config", "kube-proxy-replacement", "true"), nil, "Cilium (ConfigMap kube-system/cilium-config")
	refused("Antrea", configMap("antrea-config", "antrea-agent.conf", "antreaProxy:\n  proxyAll: true\n"), nil, "Antrea")
	refused("Calico's eBPF", daemonSet("calico-node", corev1.Container{Env: []corev1.EnvVar{{Name: "FELIX_BPFENABLED", Value: "true"}}}), nil, "Calico's eBPF dataplane")
	refused("kube-router", daemonSet("kube-router", corev1.Container{Args: []string{"--run-router=true"}}), nil, "kube-router (DaemonSet kube-system/kube-router)")
	custom := func(group, version, plural, kind, spec string) func(*bed) func() {
		return func(b *bed) func() {
			name := plural + "." + group
			rest := client.CoreV1().RESTClient()
			b.must(rest.Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").SetHeader("Content-Type", "application/json").Body([]byte(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
				"metadata":{"name":"` + name + `"},"spec":{"group":"` + group + `","scope":"Cluster","names":{"plural":"` + plural + `","kind":"` + kind + `"},
				"versions":[{"name":"` + version + `","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`)).Do(b.Context()).Error())
			lab.Await(b, "the resource to be served", func() bool {
				return rest.Post().AbsPath("/apis/"+group+"/"+version+"/"+plural).SetHeader("Content-Type", "application/json").Body([]byte(`{"apiVersion":"`+group+`/`+version+`","kind":"`+kind+`","metadata":{"name":"default"},"spec":`+spec+`}`)).Do(b.Context()).Error() == nil
			})
			return func() {
				b.must(rest.Delete().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + name).Do(context.Background()).Error())
				lab.Await(b, "the resource to be gone", func() bool {
					return rest.Get().AbsPath("/apis/"+group+"/"+version+"/"+plural).Do(context.Background()).Error() != nil
				})
			}
		}
	}
	refused("Calico's eBPF, by Felix's configuration", custom("crd.projectcalico.org", "v1", "felixconfigurations", "FelixConfiguration", `{"bpfEnabled":true}`), nil, "FelixConfiguration default: bpfEnabled: true")
	refused("Calico's eBPF, by the operator's", custom("operator.tigera.io", "v1", "installations", "Installation", `{"calicoNetwork":{"linuxDataplane":"BPF"}}`), nil, "Installation default: linuxDataplane: BPF")
	refused("GKE Dataplane V2", daemonSet("anetd", corev1.Container{}), nil, "GKE Dataplane V2")
	refused("OVN", daemonSet("ovnkube-node", corev1.Container{}), nil, "OVN-Kubernetes")
	refused("a node that fails its check", node("w2", part{kubeProxy: true, check: 7, says: "no address"}), nil, "kernel: no address", "--leave-out NODE")
	refused("a runtime of the host's own", node("w2", part{kubeProxy: true, hostRuntime: true}), nil, "a runtime of the host's own serves it")
	refused("no such node", nil, func(c *installer.Config) { c.LeaveOut = []string{"w9"} }, "--leave-out w9: there is no such node")
	refused("PodSecurity", func(b *bed) func() {
		enforce := func(level string) {
			patch := `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":` + level + `}}}`
			_, err := client.CoreV1().Namespaces().Patch(context.Background(), namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			b.must(err)
		}
		enforce(`"baseline"`)
		return func() { enforce("null") }
	}, nil, "pods like those of firsthop are refused", "PodSecurity")
	refused("a field of somebody else's", func(b *bed) func() {
		b.bindOther()
		return func() {
			b.must(client.RbacV1().ClusterRoleBindings().Delete(context.Background(), "firsthop", metav1.DeleteOptions{}))
		}
	}, nil, "argocd", "--force takes these fields over")
	t.Run("a node whose kernel is not supported is left out", func(t *testing.T) {
		b := b.on(t)
		b.p.addNode("w3", part{kubeProxy: true, check: 5, says: "Linux 4.15 is too old"}, corev1.ConditionTrue)
		rep := b.install(diagnose.Warn, nil)
		b.says(rep, "Linux 4.15 is too old", "3 of 4 nodes serve", "1 are left out")
		if order := b.p.served(); slices.Contains(order, "w3") {
			t.Errorf("pods came to %q", order)
		}
		b.settled(3)
		versions := b.objects(false)
		b.install(diagnose.Warn, nil)
		b.same(versions, b.objects(false))
	})
	t.Run("uninstall, where a node needs the Service IP to start", func(t *testing.T) {
		b := b.on(t)
		b.settled(3)
		was := b.objects(true)
		b.p.set("cp1", part{kubeProxy: true, undo: 8, says: "kubelet.conf names the Service IP"})
		rep := b.uninstall(diagnose.Fail, nil)
		b.says(rep, "node cp1: kubelet.conf names the Service IP", "nothing was changed")
		if rep.ExitCode != 8 {
			t.Errorf("exit code %d", rep.ExitCode)
		}
		b.settled(3)
		b.same(was, b.objects(true))
		b.p.set("cp1", part{kubeProxy: true})
	})
	t.Run("uninstall, where nothing else serves", func(t *testing.T) {
		b := b.on(t)
		now := int64(0)
		b.must(client.CoreV1().Pods(namespace).Delete(t.Context(), "kube-proxy-w1", metav1.DeleteOptions{GracePeriodSeconds: &now}))
		b.says(b.uninstall(diagnose.Fail, nil), "node w1: nothing else serves Service addresses there")
		b.says(b.uninstall(diagnose.OK, func(c *installer.Config) { c.Force = true }), "firsthop is gone from this cluster")
	})
	t.Run("an unreachable node", func(t *testing.T) {
		b := b.on(t)
		b.p.addNode("w4", part{}, corev1.ConditionUnknown)
		b.says(b.install(diagnose.Fail, nil), "node w4 is unreachable", "--leave-out w4")
	})
}

// TestInstallNeedsEachRight: a user who has all rights but one reads its name, for each of those that install names to
// a user without any.
func TestInstallNeedsEachRight(t *testing.T) {
	b := newBed(t)
	as := func(id cluster.Identity) func(*installer.Config) {
		return func(c *installer.Config) { c.REST = b.c.RESTConfig(id, b.c.Servers[0]) }
	}
	all := b.install(diagnose.Fail, as(b.c.ServiceAccount("default", "nobody"))).Refusals
	if len(all) < 10 {
		t.Fatalf("a user without rights lacks only %q", all)
	}
	roles := b.c.Client.RbacV1().ClusterRoles()
	_, err := roles.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "almost"}}, metav1.CreateOptions{})
	b.must(err)
	almost := as(b.c.ServiceAccount("default", "almost", "almost"))
	grant := func(texts []string) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "almost"}}
		for _, text := range texts {
			role.Rules = append(role.Rules, ruleOf(text))
		}
		_, err := roles.Update(t.Context(), role, metav1.UpdateOptions{})
		b.must(err)
	}
	for i, lacking := range all {
		grant(slices.Delete(slices.Clone(all), i, i+1))
		var said []string
		lab.Await(b, "the authorizer to know the rights but: "+lacking, func() bool {
			rep, err := installer.Install(t.Context(), b.config(almost))
			b.must(err)
			said = rep.Refusals
			return slices.Equal(said, []string{lacking})
		})
	}
	// Who grants rights must have them: the API server says so at the dry run.
	grant(all)
	lab.Await(b, "the authorizer to know all rights", func() bool {
		rep, err := installer.Install(t.Context(), b.config(almost))
		b.must(err)
		text := strings.Join(rep.Refusals, "\n")
		return rep.Result == diagnose.Fail && !strings.Contains(text, "lacks a right") && strings.Contains(text, "apply ClusterRole firsthop") && strings.Contains(text, "attempting to grant RBAC permissions")
	})
}

// ruleOf grants what a refusal names: "this user lacks a right: create, get daemonsets.apps in namespace kube-system".
func ruleOf(refusal string) rbacv1.PolicyRule {
	_, text, _ := strings.Cut(refusal, ": ")
	text, _, _ = strings.Cut(text, " in namespace ")
	at := strings.LastIndex(text, " ")
	resource, group, _ := strings.Cut(text[at+1:], ".")
	return rbacv1.PolicyRule{Verbs: strings.Split(text[:at], ", "), APIGroups: []string{group}, Resources: []string{resource}}
}

// cutter ends a command at one of its requests, before or after that took effect.
type cutter struct {
	http.RoundTripper
	left   *atomic.Int64
	cancel context.CancelFunc
	after  bool
}

func (c cutter) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.left.Add(-1) > 0 {
		return c.RoundTripper.RoundTrip(r)
	}
	if c.after {
		resp, err := c.RoundTripper.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
		if err == nil {
			resp.Body.Close()
		}
	}
	c.cancel()
	return nil, context.Canceled
}

// TestInterrupted ends install and uninstall at random requests. The next run comes to the same end.
func TestInterrupted(t *testing.T) {
	b := newBed(t)
	before := b.objects(true)
	cut := func(do func(context.Context, installer.Config) (*installer.Report, error), n int64) (requests int64) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		left := &atomic.Int64{}
		left.Store(n)
		cfg := b.config(func(c *installer.Config) {
			wrapped := rest.CopyConfig(c.REST)
			wrapped.Wrap(func(rt http.RoundTripper) http.RoundTripper { return cutter{rt, left, cancel, n%2 == 0} })
			c.REST = wrapped
		})
		if _, err := do(ctx, cfg); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("at request %d: %v", n, err)
		}
		return n - left.Load()
	}
	const whole = 1 << 40
	installs := cut(installer.Install, whole)
	b.settled(3)
	installed := b.objects(true)
	removes := cut(installer.Uninstall, whole)
	b.settled(0)
	b.same(before, b.objects(true))
	t.Logf("install makes %d requests, uninstall %d", installs, removes)
	for range 10 {
		at := 1 + rand.Int64N(installs)
		cut(installer.Install, at)
		b.install(diagnose.OK, nil)
		b.settled(3)
		t.Run(fmt.Sprintf("install ends at request %d", at), func(t *testing.T) { b.on(t).same(installed, b.objects(true)) })
		at = 1 + rand.Int64N(removes)
		cut(installer.Uninstall, at)
		b.uninstall(diagnose.OK, nil)
		b.settled(0)
		t.Run(fmt.Sprintf("uninstall ends at request %d", at), func(t *testing.T) { b.on(t).same(before, b.objects(true)) })
		if t.Failed() {
			return
		}
	}
}
