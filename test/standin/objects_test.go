package standin_test

import (
	"bufio"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// TestObjectsAreListedAndWatched asks for objects in each way that client-go does.
func TestObjectsAreListedAndWatched(t *testing.T) {
	l := lab.New(t)
	ca := must(standin.NewAuthority(netip.MustParseAddr("127.0.0.1")))(t)
	objects := standin.NewObjects()
	s := must(standin.StartAPIServer(standin.APIServerConfig{
		Name: "one", Addrs: addrs(t, "127.0.0.1:6443"), Network: l, Authority: ca, Objects: objects,
	}))(t)
	t.Cleanup(s.Close)
	put := func(name, ip string) {
		objects.Put("services", standin.Object{
			"metadata": standin.Object{"namespace": "a", "name": name}, "spec": standin.Object{"clusterIP": ip},
		})
	}
	put("x", "192.0.2.1")
	objects.Put("nodes", standin.Object{"metadata": standin.Object{"name": "n"}})
	c := client(t, l, ca, "127.0.0.1:6443", true)
	type object struct {
		Kind     string
		Metadata struct {
			Name, ResourceVersion string
			Annotations           map[string]string
		}
		Spec struct{ ClusterIP string }
	}
	const base = "https://127.0.0.1:6443/api/v1/"

	resp, text := get(t, c, base+"services")
	var list struct {
		Kind     string
		Metadata struct{ ResourceVersion string }
		Items    []object
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%d: %v: %s", resp.StatusCode, err, text)
	}
	if list.Kind != "ServiceList" || list.Metadata.ResourceVersion != "2" || len(list.Items) != 1 || list.Items[0].Spec.ClusterIP != "192.0.2.1" {
		t.Errorf("the list: %s", text)
	}
	for path, code := range map[string]int{"namespaces/a/services/x": 200, "namespaces/b/services/x": 404, "nodes/n": 200, "pods": 200, "secrets": 404} {
		if resp, text := get(t, c, base+path); resp.StatusCode != code {
			t.Errorf("%s: %d, want %d: %s", path, resp.StatusCode, code, text)
		}
	}

	// watch returns what gives the next event, as "TYPE name IP".
	watch := func(query string) func() string {
		resp := must(c.Get(base + "services?watch=true&" + query))(t)
		t.Cleanup(func() { resp.Body.Close() })
		lines := bufio.NewScanner(resp.Body)
		return func() string {
			t.Helper()
			var e struct {
				Type   string
				Object object
			}
			if !lines.Scan() {
				t.Fatalf("the watch has ended: %v", lines.Err())
			}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			if e.Object.Metadata.Annotations["k8s.io/initial-events-end"] == "true" {
				return e.Type + " at " + e.Object.Metadata.ResourceVersion
			}
			return e.Type + " " + e.Object.Metadata.Name + " " + e.Object.Spec.ClusterIP
		}
	}
	since, whole := watch("resourceVersion=2"), watch("sendInitialEvents=true")
	var got []string
	got = append(got, whole(), whole())
	put("x", "192.0.2.2")
	put("y", "192.0.2.3")
	got = append(got, since(), since(), whole(), whole())
	want := []string{
		"ADDED x 192.0.2.1", "BOOKMARK at 2",
		"MODIFIED x 192.0.2.2", "ADDED y 192.0.2.3", "MODIFIED x 192.0.2.2", "ADDED y 192.0.2.3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("watches tell of (- want, + got):\n%s", diff)
	}
}
