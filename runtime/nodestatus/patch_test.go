package nodestatus

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/test/lab"
)

// manifest decodes rbac.yaml as an API server with fieldValidation=Strict does.
func manifest(t *testing.T) (role rbacv1.ClusterRole, binding rbacv1.ClusterRoleBinding, policy admissionv1.ValidatingAdmissionPolicy, tie admissionv1.ValidatingAdmissionPolicyBinding) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/runtime/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]any{"ClusterRole": &role, "ClusterRoleBinding": &binding, "ValidatingAdmissionPolicy": &policy, "ValidatingAdmissionPolicyBinding": &tie}
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		into := kinds[kind.Kind]
		if into == nil {
			t.Fatalf("a %q, or a second one", kind.Kind)
		}
		delete(kinds, kind.Kind)
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			t.Fatal(err)
		}
	}
	if len(kinds) > 0 {
		t.Fatalf("there is no %v", slices.Collect(maps.Keys(kinds)))
	}
	return role, binding, policy, tie
}

func TestPatchPolicyOfTheManifest(t *testing.T) {
	role, binding, policy, tie := manifest(t)
	if binding.RoleRef.Kind != "ClusterRole" || binding.RoleRef.Name != role.Name || tie.Spec.PolicyName != policy.Name {
		t.Error("a binding binds something else")
	}
	if len(binding.Subjects) != 1 {
		t.Fatalf("%v", binding.Subjects)
	}
	user := "system:serviceaccount:" + binding.Subjects[0].Namespace + ":" + binding.Subjects[0].Name
	if c := policy.Spec.MatchConditions; len(c) != 1 || !strings.Contains(c[0].Expression, `"`+user+`"`) {
		t.Errorf("the policy is not for %s: %v", user, c)
	}
	all := ""
	for _, v := range policy.Spec.Validations {
		all += v.Expression
	}
	for _, v := range policy.Spec.Variables {
		all += v.Expression
	}
	for _, name := range []string{Label, string(ConditionType)} {
		if !strings.Contains(all, name) {
			t.Errorf("the policy does not know %s", name)
		}
	}
	daemonSet, err := os.ReadFile("../../deploy/manifests/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(daemonSet), "serviceAccountName: "+binding.Subjects[0].Name+"\n") {
		t.Error("the DaemonSet has another ServiceAccount")
	}
}

// rights notes what it is asked for, as rules name it. It knows no watch-lists, so that all ways are gone.
type rights struct {
	mu    sync.Mutex
	asked map[string]bool
}

func (s *rights) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	group, path := "", strings.TrimPrefix(r.URL.Path, "/api/v1/")
	if rest, ok := strings.CutPrefix(r.URL.Path, "/apis/"); ok {
		group, path, _ = strings.Cut(rest, "/v1/")
	}
	parts := strings.Split(path, "/") // resource, name, subresource
	resource, verb := parts[0], map[string]string{"GET": "list", "PATCH": "patch"}[r.Method]
	switch q := r.URL.Query(); {
	case q.Get("watch") != "":
		verb = "watch"
	case len(parts) > 1 && r.Method == "GET":
		verb = "get"
	}
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	s.mu.Lock()
	s.asked[strings.Join([]string{group, resource, verb}, " ")] = true
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	meta := metav1.ListMeta{ResourceVersion: "1"}
	var body any
	switch {
	case r.URL.Query().Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		body = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422}
	case verb == "watch":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	case verb == "list" && resource == "services":
		body = corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: meta,
			Items: []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}}}}
	case verb == "list":
		kind := map[string]string{"endpointslices": "EndpointSliceList", "nodes": "NodeList", "pods": "PodList", "servicecidrs": "ServiceCIDRList"}[resource]
		version := strings.TrimPrefix(group+"/v1", "/")
		body = map[string]any{"kind": kind, "apiVersion": version, "metadata": meta, "items": []any{}}
	default:
		body = corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	}
	_ = json.NewEncoder(w).Encode(body)
}

func (s *rights) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.asked))
}

func TestPatchRoleOfTheManifest(t *testing.T) {
	role, _, _, _ := manifest(t)
	var granted []string
	for _, rule := range role.Rules {
		if len(rule.NonResourceURLs)+len(rule.ResourceNames) > 0 {
			t.Errorf("%v", rule)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted = append(granted, strings.Join([]string{group, resource, verb}, " "))
				}
			}
		}
	}
	slices.Sort(granted)

	server := &rights{asked: map[string]bool{}}
	api := httptest.NewServer(server)
	defer api.Close()
	clients, err := watch.NewClients(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	w := watch.New(watch.Config{Clients: clients, NodeName: "n1", Log: log, Pods: true, CIDRs: true, Stripper: &services.Stripper{}, Handle: func([]watch.Event) {}})
	r := New(Config{NodeName: "n1", Client: clients.Core, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { w.Run(ctx) })
	group.Go(func() { r.Run(ctx) })
	defer group.Wait()
	defer cancel()
	r.Set(good)
	lab.Await(t, "all is asked for that is granted", func() bool {
		asked := server.list()
		return !slices.ContainsFunc(granted, func(g string) bool { return !slices.Contains(asked, g) })
	})
	if asked := server.list(); !slices.Equal(asked, granted) {
		t.Errorf("asked for %q, granted is %q", asked, granted)
	}
}
