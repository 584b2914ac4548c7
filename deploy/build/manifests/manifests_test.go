// Package manifests checks deploy/manifests with Kubernetes' own types: what a field is called, and what kubectl makes of
// the patches. What they ask for is tested by test/vm/container.
package manifests

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

const dir = "../../manifests"

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
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

func daemonSet(t *testing.T) (original []byte, ds appsv1.DaemonSet) {
	t.Helper()
	var account corev1.ServiceAccount
	documents := bytes.Split(read(t, "daemonset.yaml"), []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("%d documents, want two", len(documents))
	}
	strictly(t, documents[0], &account)
	strictly(t, documents[1], &ds)
	if pod := ds.Spec.Template.Spec; pod.ServiceAccountName != account.Name || ds.Namespace != account.Namespace {
		t.Errorf("the pods are of %s, there is %s/%s", pod.ServiceAccountName, account.Namespace, account.Name)
	}
	original, err := yaml.YAMLToJSON(documents[1])
	if err != nil {
		t.Fatal(err)
	}
	return original, ds
}

func TestTheDaemonSetIsOne(t *testing.T) {
	_, ds := daemonSet(t)
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

func TestThePatchesDoWhatTheySay(t *testing.T) {
	patched := func(t *testing.T, name string) (pod corev1.PodSpec, init corev1.Container) {
		t.Helper()
		original, _ := daemonSet(t)
		var patch, ds appsv1.DaemonSet
		strictly(t, read(t, name), &patch)
		change, err := yaml.YAMLToJSON(read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		merged, err := strategicpatch.StrategicMergePatch(original, change, appsv1.DaemonSet{})
		if err != nil {
			t.Fatal(err)
		}
		if err := stdjson.Unmarshal(merged, &ds); err != nil {
			t.Fatal(err)
		}
		pod = ds.Spec.Template.Spec
		if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
			t.Fatalf("%d init containers and %d others after it", len(pod.InitContainers), len(pod.Containers))
		}
		return pod, pod.InitContainers[0]
	}
	t.Run("host-proc.yaml", func(t *testing.T) {
		pod, init := patched(t, "host-proc.yaml")
		if pod.HostPID || len(pod.Volumes) != 1 || pod.Volumes[0].HostPath.Path != "/proc" ||
			len(init.VolumeMounts) != 1 || init.VolumeMounts[0].Name != pod.Volumes[0].Name || init.VolumeMounts[0].MountPath != "/host/proc" {
			t.Errorf("hostPID %v, volumes %+v, mounts %+v", pod.HostPID, pod.Volumes, init.VolumeMounts)
		}
		if init.Image == "" || len(init.SecurityContext.Capabilities.Add) == 0 {
			t.Error("the rest of the container is gone")
		}
	})
	t.Run("localhost-seccomp.yaml", func(t *testing.T) {
		_, init := patched(t, "localhost-seccomp.yaml")
		p := init.SecurityContext.SeccompProfile
		if p == nil || p.Type != corev1.SeccompProfileTypeLocalhost || p.LocalhostProfile == nil {
			t.Fatalf("profile %+v", p)
		}
		if _, err := os.Stat(filepath.Join(dir, "../seccomp", *p.LocalhostProfile)); err != nil {
			t.Error(err)
		}
		if len(init.SecurityContext.Capabilities.Add) == 0 {
			t.Error("the rest of the security context is gone")
		}
	})
}

// The runtime's patch makes of the placeholder what docs/container.md says.
func TestTheRuntimeTakesThePlaceOfThePlaceholder(t *testing.T) {
	original, base := daemonSet(t)
	var patch, ds appsv1.DaemonSet
	strictly(t, read(t, "../runtime/daemonset.yaml"), &patch)
	change, err := yaml.YAMLToJSON(read(t, "../runtime/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	merged, err := strategicpatch.StrategicMergePatch(original, change, appsv1.DaemonSet{})
	if err != nil {
		t.Fatal(err)
	}
	if err := stdjson.Unmarshal(merged, &ds); err != nil {
		t.Fatal(err)
	}
	pod, init := ds.Spec.Template.Spec, base.Spec.Template.Spec.InitContainers[0]
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 1 {
		t.Fatalf("%d containers, %d init containers", len(pod.Containers), len(pod.InitContainers))
	}
	c := pod.Containers[0]
	if c.Image != init.Image || len(c.Args) != 1 || c.Args[0] != "run" {
		t.Errorf("it runs %s %v", c.Image, c.Args)
	}
	if pod.AutomountServiceAccountToken == nil || !*pod.AutomountServiceAccountToken {
		t.Error("it has no credentials")
	}
	may := map[corev1.Capability]bool{}
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
	if p := c.LivenessProbe; p == nil || p.HTTPGet == nil || p.HTTPGet.Path != "/livez" || c.Ports[0].ContainerPort != 10256 || c.ReadinessProbe != nil {
		t.Errorf("probes %+v, ports %+v", p, c.Ports)
	}
}
