package deploy

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the rendered files, as make manifests does")

func defaults(t *testing.T, change func(*Values)) Values {
	t.Helper()
	v, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&v)
	}
	return v
}

func rendered(t *testing.T, name string, change func(*Values)) []byte {
	t.Helper()
	text, err := render(name, defaults(t, change))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func initOnly(v *Values) { v.Runtime = false }

// TestRenderedFiles: the files are what the chart makes. With -update it writes them.
func TestRenderedFiles(t *testing.T) {
	files, err := Render(defaults(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	const note = "# Rendered from chart by make manifests: change it there.\n"
	for name, text := range map[string][]byte{
		"firsthop.yaml":            bytes.Join(files, []byte("---\n")),
		"manifests/daemonset.yaml": rendered(t, "daemonset.yaml", initOnly),
		"runtime/daemonset.yaml":   rendered(t, "daemonset.yaml", nil),
		"runtime/rbac.yaml":        rendered(t, "rbac.yaml", nil),
	} {
		want := append([]byte(note), text...)
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("deploy/%s is not what the chart makes (%v): make manifests", name, err)
		}
		for n, line := range strings.Split(string(want), "\n") {
			if strings.TrimRight(line, " ") != line {
				t.Errorf("deploy/%s:%d: blanks at the end: %q", name, n+1, line)
			}
		}
	}
}

// daemonSet decodes the DaemonSet of a file strictly.
func daemonSet(t *testing.T, file []byte) *appsv1.DaemonSet {
	t.Helper()
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(lastDocument(file), &ds); err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	return &ds
}

func lastDocument(file []byte) []byte { d := Documents(file); return d[len(d)-1] }

// TestKustomizations: each names the files of its directory, with every patch ready to be used.
func TestKustomizations(t *testing.T) {
	for dir, resources := range map[string][]string{"manifests": {"daemonset.yaml"}, "runtime": {"daemonset.yaml", "rbac.yaml"}} {
		text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var k struct {
			APIVersion string   `json:"apiVersion"`
			Kind       string   `json:"kind"`
			Resources  []string `json:"resources"`
		}
		if err := yaml.UnmarshalStrict(text, &k); err != nil {
			t.Fatal(err)
		}
		if k.Kind != "Kustomization" || !reflect.DeepEqual(k.Resources, resources) {
			t.Errorf("%s: %+v", dir, k)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if f.Name() != "kustomization.yaml" && !bytes.Contains(text, []byte(f.Name())) {
				t.Errorf("%s/kustomization.yaml does not name %s", dir, f.Name())
			}
		}
	}
}

// TestOneImage: both containers have it from one value, and CAP_SYS_RESOURCE is asked for only where it was wanted.
func TestOneImage(t *testing.T) {
	const image = "registry.example/firsthop@sha256:0123"
	ds := daemonSet(t, rendered(t, "daemonset.yaml", func(v *Values) { v.Image = image }))
	pod := ds.Spec.Template.Spec
	if pod.InitContainers[0].Image != image || pod.Containers[0].Image != image {
		t.Errorf("images %s, %s", pod.InitContainers[0].Image, pod.Containers[0].Image)
	}
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		for _, name := range c.SecurityContext.Capabilities.Add {
			if name == "SYS_RESOURCE" {
				t.Errorf("%s asks for SYS_RESOURCE, with which a host that lacks it can't start the pod", c.Name)
			}
		}
	}
}

func TestRenderAddresses(t *testing.T) {
	ds := daemonSet(t, rendered(t, "daemonset.yaml", func(v *Values) { v.ServiceIPs, v.Endpoints = "[fd00::1]:443", "192.0.2.1:6443" }))
	pod := ds.Spec.Template.Spec
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		env := map[string]string{}
		for _, e := range c.Env {
			env[e.Name] = e.Value
		}
		if env["KUBERNETES_SERVICE_IPS_PORTS"] != "[fd00::1]:443" || env["KUBERNETES_APISERVER_ENDPOINTS"] != "192.0.2.1:6443" {
			t.Errorf("%s: %v", c.Name, env)
		}
		if f := c.EnvFrom; len(f) != 1 || f[0].ConfigMapRef.Name != "kubernetes-services-endpoint" || !*f[0].ConfigMapRef.Optional {
			t.Errorf("%s: %+v", c.Name, f)
		}
	}
}

// TestPodMonitorOfLoopback: what Prometheus could never reach is refused.
func TestPodMonitorOfLoopback(t *testing.T) {
	_, err := Render(defaults(t, func(v *Values) { v.Metrics.PodMonitor = true }))
	if err == nil || !strings.Contains(err.Error(), "metrics.host") {
		t.Errorf("%v, want it to name metrics.host", err)
	}
}

// TestSchemaHasEveryValue: Helm refuses what values.schema.json does not have, as cluster install does.
func TestSchemaHasEveryValue(t *testing.T) {
	text, err := chart.ReadFile("chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Additional *bool                      `json:"additionalProperties"`
		Properties map[string]json.RawMessage `json:"properties"`
	}
	compare := func(text []byte, of reflect.Type, more ...string) schema {
		var s schema
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		if s.Additional == nil || *s.Additional {
			t.Errorf("%s: values of other names are accepted", of)
		}
		for i := range of.NumField() {
			more = append(more, of.Field(i).Tag.Get("json"))
		}
		if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, slices.Sorted(slices.Values(more))) {
			t.Errorf("%s: the schema has %q, want %q", of, got, more)
		}
		return s
	}
	s := compare(text, reflect.TypeFor[Values](), "global") // that Helm gives every chart
	compare(s.Properties["metrics"], reflect.TypeFor[Metrics]())
}

// TestRenderPodMonitor: Prometheus finds the port by its name.
func TestRenderPodMonitor(t *testing.T) {
	if text := rendered(t, "podmonitor.yaml", nil); text != nil {
		t.Errorf("by default there is\n%s", text)
	}
	monitored := func(v *Values) { v.Metrics = Metrics{Host: "[::]", Port: 10266, PodMonitor: true} }
	var m struct {
		Spec struct {
			PodMetricsEndpoints []struct {
				Port string `json:"port"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(rendered(t, "podmonitor.yaml", monitored), &m); err != nil {
		t.Fatal(err)
	}
	c := daemonSet(t, rendered(t, "daemonset.yaml", monitored)).Spec.Template.Spec.Containers[0]
	if len(c.Ports) != 1 || len(m.Spec.PodMetricsEndpoints) != 1 || c.Ports[0].Name != m.Spec.PodMetricsEndpoints[0].Port || c.Args[1] != "--metrics-bind-address=[::]:10266,127.0.0.1:10249" {
		t.Errorf("%+v, %+v, %q", m, c.Ports, c.Args)
	}
}
