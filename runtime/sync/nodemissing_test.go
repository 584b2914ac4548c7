package sync

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/watch"
)

func TestNodeMissingIsReported(t *testing.T) {
	r := newRig(t)
	if got := r.l.NodeMissing(); got != "" {
		t.Errorf("before the API has told: %q", got)
	}
	r.sync(watch.Nodes)
	if got := r.l.NodeMissing(); !strings.Contains(got, "no Node node-a") || !strings.Contains(got, "--node-name") {
		t.Errorf("a Node that does not exist: %q", got)
	}
	r.tell(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a"}})
	if got := r.l.NodeMissing(); got != "" {
		t.Errorf("it has come: %q", got)
	}
	r.l.Handle([]watch.Event{{Resource: watch.Nodes, Name: types.NamespacedName{Name: "node-a"}}})
	if got := r.l.NodeMissing(); got == "" {
		t.Error("it has gone, and nothing tells")
	}
}
