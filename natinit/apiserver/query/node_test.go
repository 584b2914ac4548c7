package query

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/test/apitest"
)

// credentialOf is what a kubeconfig on a host gives.
func credentialOf(t *testing.T, kubeconfig string) *sources.Credential {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "kubelet.conf"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := sources.LoadKubeconfig(root, "/kubelet.conf")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRemoveMarksAsTheKubelet on a real API server, whose node authorizer and admission let a kubelet do so.
func TestRemoveMarksAsTheKubelet(t *testing.T) {
	ca := apitest.NewCA(t)
	apitest.StartReal(t, ca, "--enable-admission-plugins=NodeRestriction")
	admin := ca.HTTPClient(t, "admin", "system:masters")
	const node = "/api/v1/nodes/n1"
	apitest.Create(t, admin, "/api/v1/nodes", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {mine: stays, firsthop.io/proxy: active}}\n")
	patch(t, admin, node+"/status", `{"status":{"conditions":[{"type":"FirsthopReady","status":"True"},{"type":"Ready","status":"True"}]}}`)
	kubelet := credentialOf(t, ca.Kubeconfig(t, "https://"+apitest.RealAddress, "system:node:n1", "system:nodes"))
	cfg := Config{Credentials: []*sources.Credential{kubelet}, Candidates: []apiserver.Endpoint{ep("10.99.0.77:6443"), ep(apitest.RealAddress)}}
	want := Marks{Node: "n1", Label: true, Condition: true}
	if m, err := ReadMarks(t.Context(), cfg); err != nil || m != want {
		t.Fatalf("read %+v, %v", m, err)
	}
	if m, err := RemoveMarks(t.Context(), cfg); err != nil || m != want {
		t.Fatalf("removed %+v, %v", m, err)
	}
	_, body := apitest.Get(admin, apitest.RealAddress, node)
	var left struct {
		Metadata struct{ Labels map[string]string }
		Status   struct{ Conditions []struct{ Type string } }
	}
	if err := json.Unmarshal([]byte(body), &left); err != nil {
		t.Fatal(err)
	}
	if left.Metadata.Labels["mine"] != "stays" || left.Metadata.Labels[NodeLabel] != "" || len(left.Status.Conditions) != 1 || left.Status.Conditions[0].Type != "Ready" {
		t.Errorf("left: %+v", left)
	}
	if m, err := RemoveMarks(t.Context(), cfg); err != nil || m.Any() {
		t.Errorf("again: %+v, %v", m, err)
	}
	cfg.Credentials = []*sources.Credential{credentialOf(t, ca.Kubeconfig(t, "https://"+apitest.RealAddress, "admin", "system:masters"))}
	if _, err := RemoveMarks(t.Context(), cfg); !errors.Is(err, ErrNoNodeIdentity) {
		t.Errorf("as an administrator, whose node is not known: %v", err)
	}
}

func patch(t *testing.T, c *http.Client, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, "https://"+apitest.RealAddress+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("patch %s: %s", path, b)
	}
}

func TestReadMarksNeedsAVerifiedServer(t *testing.T) {
	ours, other := apitest.NewCA(t), apitest.NewCA(t)
	at := apiserver.Endpoint{Addr: apitest.ServeTLS(t, "10.99.0.1:0", other.Server(t, apitest.Names...), apitest.AnswersOK)}
	kubelet := credentialOf(t, ours.Kubeconfig(t, "https://"+at.Addr.String(), "system:node:n1", "system:nodes"))
	if _, err := ReadMarks(t.Context(), Config{Credentials: []*sources.Credential{kubelet}, Candidates: []apiserver.Endpoint{at}}); err == nil {
		t.Error("a unknown is asked")
	}
}
