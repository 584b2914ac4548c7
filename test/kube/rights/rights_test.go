// Package rights tests what deploy/runtime/rbac.yaml lets the runtime do, on a real API server.
package rights

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/runtime/nodestatus"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

const (
	namespace = "kube-system"
	account   = "firsthop"
	patience  = 2 * time.Minute
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply creates what is in rbac.yaml, strictly decoded.
func apply(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/runtime/rbac.yaml")
	must(t, err)
	ctx := t.Context()
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal(doc, &kind))
		switch kind.Kind {
		case "ClusterRole":
			var o rbacv1.ClusterRole
			must(t, yaml.UnmarshalStrict(doc, &o))
			_, err = c.Client.RbacV1().ClusterRoles().Create(ctx, &o, metav1.CreateOptions{})
		case "ClusterRoleBinding":
			var o rbacv1.ClusterRoleBinding
			must(t, yaml.UnmarshalStrict(doc, &o))
			_, err = c.Client.RbacV1().ClusterRoleBindings().Create(ctx, &o, metav1.CreateOptions{})
		case "ValidatingAdmissionPolicy":
			var o admissionv1.ValidatingAdmissionPolicy
			must(t, yaml.UnmarshalStrict(doc, &o))
			_, err = c.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, &o, metav1.CreateOptions{})
		case "ValidatingAdmissionPolicyBinding":
			var o admissionv1.ValidatingAdmissionPolicyBinding
			must(t, yaml.UnmarshalStrict(doc, &o))
			_, err = c.Client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(ctx, &o, metav1.CreateOptions{})
		default:
			t.Fatalf("rbac.yaml has a %q", kind.Kind)
		}
		must(t, err)
	}
}

// node makes a Node with something of everything that must not change.
func node(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	n, err := c.Client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"topology.kubernetes.io/zone": "a", "gone": "x"}, Annotations: map[string]string{"a": "b"}},
		Spec:       corev1.NodeSpec{ProviderID: "x://" + name},
	}, metav1.CreateOptions{})
	must(t, err)
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
	_, err = c.Client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
	must(t, err)
}

// podToken is the token that a pod of the DaemonSet on a node gets.
func podToken(t *testing.T, c *cluster.Cluster, nodeName string) cluster.Identity {
	t.Helper()
	pod, err := c.Client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "firsthop-" + nodeName},
		Spec:       corev1.PodSpec{NodeName: nodeName, ServiceAccountName: account, Containers: []corev1.Container{{Name: "firsthop", Image: "firsthop"}}},
	}, metav1.CreateOptions{})
	must(t, err)
	token, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	must(t, err)
	return cluster.Identity{Token: token.Status.Token}
}

func patch(t *testing.T, client kubernetes.Interface, node string, kind types.PatchType, body string, subresource ...string) error {
	_, err := client.CoreV1().Nodes().Patch(t.Context(), node, kind, []byte(body), metav1.PatchOptions{}, subresource...)
	return err
}

const ourCondition = `{"metadata":{"labels":{"firsthop.io/proxy":"active"}},"status":{"conditions":[{"type":"FirsthopReady","status":"True","reason":"Proven"}]}}`

func TestTheRuntimeChangesItsOwnNodeAndNoOther(t *testing.T) {
	c := cluster.New(t, cluster.Config{})
	apply(t, c)
	nowhere := c.ServiceAccount(namespace, account) // its token is bound to no pod
	node(t, c, "mine")
	node(t, c, "other")
	own := podToken(t, c, "mine")
	client := c.ClientOf(own, c.Servers[0])
	must(t, awaitPolicy(t, client))

	t.Run("what is refused", func(t *testing.T) { testRefused(t, c, client, nowhere) })
	t.Run("a Reporter reports", func(t *testing.T) { testReporter(t, c, own) })
	t.Run("others are not held by the policy", func(t *testing.T) {
		must(t, patch(t, c.Client, "other", types.MergePatchType, `{"metadata":{"labels":{"gone":null}}}`))
	})
	t.Run("the policy's expressions are sound", func(t *testing.T) { testPolicy(t, c) })
}

// awaitPolicy waits until the policy is in force: until the other node is refused.
func awaitPolicy(t *testing.T, client kubernetes.Interface) error {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := patch(t, client, "other", types.StrategicMergePatchType, ourCondition, "status")
		if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "firsthop-own-node") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the policy is not in force: %w", errors.Join(err, context.DeadlineExceeded))
		}
	}
}

func testRefused(t *testing.T, c *cluster.Cluster, client kubernetes.Interface, nowhere cluster.Identity) {
	const strategic, merge, jsonPatch = types.StrategicMergePatchType, types.MergePatchType, types.JSONPatchType
	for _, tc := range []struct {
		name, node string
		kind       types.PatchType
		body       string
		sub        string
		says       string // "": it is allowed
	}{
		{"our label and condition", "mine", strategic, ourCondition, "status", ""},
		{"our label goes", "mine", strategic, `{"metadata":{"labels":{"firsthop.io/proxy":null}}}`, "status", ""},
		{"our condition goes", "mine", strategic, `{"status":{"conditions":[{"type":"FirsthopReady","$patch":"delete"}]}}`, "status", ""},
		{"another node's label and condition", "other", strategic, ourCondition, "status", "only changes the node that it runs on"},
		{"another label", "mine", strategic, `{"metadata":{"labels":{"topology.kubernetes.io/zone":"b"}}}`, "status", "no label but"},
		{"a new label", "mine", strategic, `{"metadata":{"labels":{"firsthop.io/proxy2":"b"}}}`, "status", "no label but"},
		{"a label goes", "mine", strategic, `{"metadata":{"labels":{"gone":null}}}`, "status", "no label but"},
		{"all labels go", "mine", merge, `{"metadata":{"labels":null}}`, "status", "no label but"},
		{"an annotation", "mine", strategic, `{"metadata":{"annotations":{"a":"c"}}}`, "status", "nothing of a node's metadata"},
		{"a new annotation", "mine", strategic, `{"metadata":{"annotations":{"x":"c"}}}`, "status", "nothing of a node's metadata"},
		{"annotations go", "mine", merge, `{"metadata":{"annotations":null}}`, "status", "nothing of a node's metadata"},
		{"a finalizer", "mine", merge, `{"metadata":{"finalizers":["x/y"]}}`, "status", "nothing of a node's metadata"},
		{"an owner", "mine", merge, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"1"}]}}`, "status", "nothing of a node's metadata"},
		{"another condition", "mine", strategic, `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, "status", "nothing of a node's status"},
		{"a new condition", "mine", strategic, `{"status":{"conditions":[{"type":"X","status":"False"}]}}`, "status", "nothing of a node's status"},
		{"conditions go", "mine", merge, `{"status":{"conditions":null}}`, "status", "nothing of a node's status"},
		{"an address", "mine", jsonPatch, `[{"op":"replace","path":"/status/addresses/0/address","value":"192.0.2.9"}]`, "status", "nothing of a node's status"},
		{"addresses go", "mine", merge, `{"status":{"addresses":null}}`, "status", "nothing of a node's status"},
		{"capacity", "mine", strategic, `{"status":{"capacity":{"cpu":"1"},"allocatable":{"cpu":"1"}}}`, "status", "nothing of a node's status"},
		{"the kubelet's port", "mine", strategic, `{"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":1}}}}`, "status", "nothing of a node's status"},
		{"the specification", "mine", strategic, `{"spec":{"unschedulable":true}}`, "", "cannot patch resource \"nodes\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var sub []string
			if tc.sub != "" {
				sub = []string{tc.sub}
			}
			err := patch(t, client, tc.node, tc.kind, tc.body, sub...)
			switch {
			case tc.says == "" && err != nil:
				t.Error("is refused:", err)
			case tc.says != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
	t.Run("the specification through the status stays as it is", func(t *testing.T) {
		must(t, patch(t, client, "mine", strategic, `{"spec":{"unschedulable":true}}`, "status"))
		n, err := c.Client.CoreV1().Nodes().Get(t.Context(), "mine", metav1.GetOptions{})
		must(t, err)
		if n.Spec.Unschedulable {
			t.Error("the node is cordoned")
		}
	})
	t.Run("a token that is bound to no pod changes no node", func(t *testing.T) {
		for _, name := range []string{"mine", "other"} {
			err := patch(t, c.ClientOf(nowhere, c.Servers[0]), name, strategic, ourCondition, "status")
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "its token must say") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("with all rights on nodes it still changes its status only", func(t *testing.T) {
		_, err := c.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "too-much"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}},
		}, metav1.CreateOptions{})
		must(t, err)
		defer func() {
			must(t, c.Client.RbacV1().ClusterRoleBindings().Delete(t.Context(), "too-much", metav1.DeleteOptions{}))
		}()
		refused := func(what string, do func() error) {
			t.Helper()
			var err error
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if err = do(); err == nil || strings.Contains(err.Error(), "firsthop-own-node") {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), "only changes the status of nodes") {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("cordon", func() error { return patch(t, client, "mine", strategic, `{"spec":{"unschedulable":true}}`) })
		refused("delete", func() error {
			return client.CoreV1().Nodes().Delete(t.Context(), "other", metav1.DeleteOptions{})
		})
		refused("create", func() error {
			_, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "third"}}, metav1.CreateOptions{})
			return err
		})
	})
}

func testReporter(t *testing.T, c *cluster.Cluster, own cluster.Identity) {
	clients, err := watch.NewClients(c.RESTConfig(own, c.Servers[0]))
	must(t, err)
	r := nodestatus.New(nodestatus.Config{NodeName: "mine", Client: clients.Core, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	r.Set(nodestatus.Report{Mode: nodestatus.Active, Ready: corev1.ConditionTrue, Reason: "Proven", Message: "it answers"})
	for end := time.Now().Add(patience); r.Status().Writes == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", r.Status())
		}
	}
	n, err := c.Client.CoreV1().Nodes().Get(t.Context(), "mine", metav1.GetOptions{})
	must(t, err)
	if n.Labels[nodestatus.Label] != "active" || len(n.Status.Conditions) != 2 || n.Labels["gone"] != "x" ||
		!slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == nodestatus.ConditionType && c.Message == "it answers"
		}) {
		text, _ := json.Marshal(n)
		t.Errorf("%s", text)
	}
}

// The type checker of the controller manager is not here; what it would say of an expression that can't be evaluated is in
// the errors above. What remains is that the API server took the policy as it was written.
func testPolicy(t *testing.T, c *cluster.Cluster) {
	p, err := c.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), "firsthop-own-node", metav1.GetOptions{})
	must(t, err)
	if n := len(p.Spec.Validations); n != 6 {
		t.Errorf("%d validations", n)
	}
}
