package scenes

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/kube/nodes"
	"github.com/firsthop/firsthop/test/lab"
)

// TestKilledSceneLeavesNothing kills a test while its node makes a cluster: nodes, their processes, cgroups, mounts and
// programs go with it.
func TestKilledSceneLeavesNothing(t *testing.T) {
	nodes.Need(t)
	before, err := lab.Take()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	scene := exec.Command(os.Args[0], "-test.run=^TestInstallBeforeKubeadm$", "-test.v")
	scene.Stdout, scene.Stderr = &out, &out
	if err := scene.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = scene.Wait(); close(ended) }()
	t.Cleanup(func() { _ = scene.Process.Kill(); <-ended })
	await := func(what string, holds func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Minute); !holds(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s\n%s", what, out.Bytes())
			}
		}
	}
	traces := func() []string {
		left, err := lab.TracesOf(scene.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	await("a kubelet that has pods", func() bool {
		select {
		case <-ended:
			t.Fatalf("the scene ended by itself:\n%s", out.Bytes())
		default:
		}
		pods := 0
		for _, dir := range traces() {
			found, _ := filepath.Glob(filepath.Join(dir, "n1/kubelet/pods/*")) // the pattern is well-formed
			pods += len(found)
		}
		return pods > 0
	})
	if err := scene.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	await("nothing is left of it", func() bool { return len(traces()) == 0 })
	leaks, err := before.ObjectLeaks()
	if err != nil || len(leaks) > 0 {
		t.Errorf("%v: left: %s", err, strings.Join(leaks, "\n"))
	}
}
