package manifests

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"

	"github.com/firsthop/firsthop/deploy"
)

// helm renders the chart as `helm template firsthop deploy/chart -n kube-system` does.
func helm(t *testing.T, values map[string]any) map[string]string {
	t.Helper()
	c, err := loader.Load("../../chart")
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "firsthop", Namespace: "kube-system", IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLintOfHelm(t *testing.T) {
	result := lint.All("../../chart", nil, "kube-system", true)
	for _, m := range result.Messages {
		if m.Severity >= support.WarningSev {
			t.Error(m)
		}
	}
}

// TestHelmRefuses what cluster install refuses, too: a mistyped value must not mean the default.
func TestHelmRefuses(t *testing.T) {
	c, err := loader.Load("../../chart")
	if err != nil {
		t.Fatal(err)
	}
	for says, values := range map[string]map[string]any{
		"kernelsBelow5": {"kernelsBelow5": true},
		"runtime":       {"runtime": "yes"},
		"/metrics/host": {"metrics": map[string]any{"host": "192.0.2.1"}},
		"/metrics/port": {"metrics": map[string]any{"port": 10256}},
		"metrics.host":  {"metrics": map[string]any{"podMonitor": true}},
	} {
		all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "firsthop", Namespace: "kube-system", IsInstall: true}, nil)
		if err == nil {
			_, err = engine.Render(c, all)
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want it to name %s", values, err, says)
		}
	}
}

// TestHelmMakesWhatRenderMakes: what Helm makes of the chart is what deploy's own Render makes of it.
func TestHelmMakesWhatRenderMakes(t *testing.T) {
	for name, change := range map[string]func(*deploy.Values){
		"default":                func(*deploy.Values) {},
		"an init container only": func(v *deploy.Values) { v.Runtime = false },
		"addresses":              func(v *deploy.Values) { v.ServiceIPs, v.Endpoints = "[fd00::1]:443", "192.0.2.1:6443" },
		"old kernels":            func(v *deploy.Values) { v.KernelsBelow511 = true },
		"no hostPID":             func(v *deploy.Values) { v.HostProc = true },
		"our seccomp profile":    func(v *deploy.Values) { v.LocalhostSeccomp = "firsthop-init.json" },
		"a PodMonitor":           func(v *deploy.Values) { v.Metrics = deploy.Metrics{Host: "[::]", Port: 10266, PodMonitor: true} },
	} {
		t.Run(name, func(t *testing.T) {
			v, err := deploy.Defaults()
			if err != nil {
				t.Fatal(err)
			}
			change(&v)
			files, err := deploy.Render(v)
			if err != nil {
				t.Fatal(err)
			}
			text, err := yaml.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			var values map[string]any
			if err := yaml.Unmarshal(text, &values); err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for _, f := range files {
				want = append(want, strings.TrimSpace(string(f)))
			}
			for name, text := range helm(t, values) {
				if text = strings.TrimSpace(text); strings.HasSuffix(name, ".yaml") && text != "" {
					got = append(got, text)
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("Helm makes\n%s\nRender makes\n%s", strings.Join(got, "\n---\n"), strings.Join(want, "\n---\n"))
			}
		})
	}
}

// TestPatchesOfKustomize: a directory's DaemonSet with a patch is what Helm makes with the value that does the same.
func TestPatchesOfKustomize(t *testing.T) {
	for patch, values := range map[string]map[string]any{
		"host-proc.yaml":          {"hostProc": true},
		"localhost-seccomp.yaml":  {"localhostSeccomp": "firsthop-init.json"},
		"kernels-below-5.11.yaml": {"kernelsBelow511": true},
	} {
		for _, dir := range []string{"manifests", "runtime"} {
			t.Run(dir+"/"+patch, func(t *testing.T) {
				values["runtime"] = dir == "runtime"
				var got, want appsv1.DaemonSet
				strictly(t, last([]byte(helm(t, values)["firsthop/templates/daemonset.yaml"])), &want)
				patched := func(file string) []byte {
					text, err := os.ReadFile(filepath.Join("../..", dir, file))
					if err != nil {
						t.Fatal(err)
					}
					if text, err = yaml.YAMLToJSON(last(text)); err != nil {
						t.Fatal(err)
					}
					return text
				}
				text, err := strategicpatch.StrategicMergePatch(patched("daemonset.yaml"), patched(patch), appsv1.DaemonSet{})
				if err != nil {
					t.Fatal(err)
				}
				strictly(t, text, &got)
				if !reflect.DeepEqual(got, want) {
					a, _ := yaml.Marshal(got)
					b, _ := yaml.Marshal(want)
					t.Errorf("kustomize makes\n%s\nHelm makes\n%s", a, b)
				}
			})
		}
	}
}

// last is the last document of a file.
func last(file []byte) []byte {
	documents := bytes.Split(file, []byte("\n---\n"))
	return documents[len(documents)-1]
}
