// Package manifests checks deploy's manifests with Kubernetes' own types, what a field is called and what kubectl makes of
// the patches, and its chart with Helm. What they ask for is tested by test/vm/container.
package manifests

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// strictly decodes as an API server with fieldValidation=Strict does: also upper and lower case count.
func strictly(t *testing.T, text []byte, into runtime.Object) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(appsv1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	if _, _, err := decoder.Decode(text, nil, into); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

// daemonSet is that of a directory.
func daemonSet(t *testing.T, dir string) (ds appsv1.DaemonSet) {
	t.Helper()
	var account corev1.ServiceAccount
	documents := bytes.Split(read(t, dir+"/daemonset.yaml"), []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("%d documents, want two", len(documents))
	}
	strictly(t, documents[0], &account)
	strictly(t, documents[1], &ds)
	if pod := ds.Spec.Template.Spec; pod.ServiceAccountName != account.Name || ds.Namespace != account.Namespace {
		t.Errorf("the pods are of %s, there is %s/%s", pod.ServiceAccountName, account.Namespace, account.Name)
	}
	return ds
}

func TestTheDaemonSetIsOne(t *testing.T) {
	ds := daemonSet(t, "manifests")
	if ds.APIVersion != "apps/v1" || ds.Kind != "DaemonSet" {
		t.Errorf("it is a %s of %s", ds.Kind, ds.APIVersion)
	}
	for k, v := range ds.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[k] != v {
			t.Errorf("the pods have no label %s=%s", k, v)
		}
	}
	for _, c := range append(ds.Spec.Template.Spec.InitContainers, ds.Spec.Template.Spec.Containers...) {
		limit, request := c.Resources.Limits.Memory(), c.Resources.Requests.Memory()
		if limit.IsZero() || request.IsZero() || request.Cmp(*limit) > 0 {
			t.Errorf("%s: memory %v of %v", c.Name, request, limit)
		}
	}
}

// The runtime's DaemonSet is what docs/container.md says.
func TestTheRuntimeTakesThePlaceOfThePlaceholder(t *testing.T) {
	base, ds := daemonSet(t, "manifests"), daemonSet(t, "runtime")
	pod, init := ds.Spec.Template.Spec, base.Spec.Template.Spec.InitContainers[0]
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 1 || !reflect.DeepEqual(pod.InitContainers[0], init) {
		t.Fatalf("%d containers, %d init containers", len(pod.Containers), len(pod.InitContainers))
	}
	c := pod.Containers[0]
	if c.Image != init.Image || c.Args[0] != "run" {
		t.Errorf("it runs %s %v", c.Image, c.Args)
	}
	if pod.AutomountServiceAccountToken == nil || !*pod.AutomountServiceAccountToken {
		t.Error("it has no credentials")
	}
	may := map[corev1.Capability]bool{"DAC_READ_SEARCH": true} // init looks at no sockets
	for _, name := range init.SecurityContext.Capabilities.Add {
		may[name] = true
	}
	for _, name := range c.SecurityContext.Capabilities.Add {
		if !may[name] {
			t.Errorf("it has %s, which init has not", name)
		}
	}
	if s := c.SecurityContext; *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || *s.RunAsUser != 0 {
		t.Errorf("security context %+v", s)
	}
	// Neither port is one of kube-proxy's, which would answer the kubelet's probe.
	for path, p := range map[string]*corev1.Probe{"/livez": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != path || p.HTTPGet.Port.IntVal != 10266 || p.HTTPGet.Host != "127.0.0.1" {
			t.Errorf("the probe of %s: %+v", path, p)
		}
	}
	if len(c.Ports) != 0 {
		t.Errorf("ports %+v", c.Ports)
	}
}
