package manifests

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
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

// TestHelmMakesTheFiles: what Helm makes of the chart is what deploy's own Render made of it.
func TestHelmMakesTheFiles(t *testing.T) {
	all, err := os.ReadFile("../../firsthop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for name, text := range helm(t, nil) {
		if text = strings.TrimSpace(text); !strings.HasSuffix(name, ".yaml") || text == "" {
			continue
		}
		found++
		if !strings.Contains(string(all), "\n"+text+"\n") {
			t.Errorf("deploy/firsthop.yaml does not have what Helm makes of %s:\n%s", name, text)
		}
	}
	if found != 2 {
		t.Errorf("Helm makes %d files with objects", found)
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
