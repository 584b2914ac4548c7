package installer

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/firsthop/firsthop/deploy"
	"github.com/firsthop/firsthop/test/kube/cluster"
)

// TestChartIsAccepted has an API server judge, strictly and without writing, what the chart makes with each value.
// A PodMonitor is of Prometheus Operator, and unknown to it.
func TestChartIsAccepted(t *testing.T) {
	c := cluster.New(t, cluster.Config{})
	groups, err := restmapper.GetAPIGroupResources(discovery.NewDiscoveryClient(c.Client.CoreV1().RESTClient()))
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for name, change := range map[string]func(*deploy.Values){
		"default":                                func(*deploy.Values) {},
		"an init container only":                 func(v *deploy.Values) { v.Runtime = false },
		"addresses":                              func(v *deploy.Values) { v.ServiceIPs, v.Endpoints = "10.96.0.1:443", "192.0.2.1:6443" },
		"old kernels":                            func(v *deploy.Values) { v.KernelsBelow511 = true },
		"no hostPID":                             func(v *deploy.Values) { v.HostProc = true },
		"no hostPID, and an init container only": func(v *deploy.Values) { v.HostProc, v.Runtime = true, false },
		"our seccomp profile":                    func(v *deploy.Values) { v.LocalhostSeccomp = "firsthop-init.json" },
		"metrics for everybody":                  func(v *deploy.Values) { v.Metrics.Host = "[::]" },
	} {
		t.Run(name, func(t *testing.T) {
			values, err := deploy.Defaults()
			if err != nil {
				t.Fatal(err)
			}
			change(&values)
			files, err := deploy.Render(values)
			if err != nil {
				t.Fatal(err)
			}
			applied := 0
			for _, file := range files {
				for _, doc := range deploy.Documents(file) {
					if err := dryRun(t, c, mapper, doc); err != nil {
						t.Errorf("%v\n%s", err, doc)
					}
					applied++
				}
			}
			if want := map[bool]int{true: 6, false: 2}[values.Runtime]; applied != want {
				t.Errorf("%d objects, want %d", applied, want)
			}
		})
	}
}

// dryRun applies an object as `kubectl apply --server-side --dry-run=server` does.
func dryRun(t *testing.T, c *cluster.Cluster, mapper meta.RESTMapper, doc []byte) error {
	var o metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(doc, &o); err != nil {
		return err
	}
	gvk := o.GroupVersionKind()
	m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return err
	}
	path := "/apis/" + gvk.GroupVersion().String()
	if gvk.Group == "" {
		path = "/api/" + gvk.Version
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		path += "/namespaces/" + o.Namespace
	}
	err = c.Client.CoreV1().RESTClient().Patch(types.ApplyYAMLPatchType).AbsPath(path, m.Resource.Resource, o.Name).
		Param("dryRun", "All").Param("fieldManager", "firsthop").Param("fieldValidation", "Strict").Body(doc).Do(t.Context()).Error()
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}
