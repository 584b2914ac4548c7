package workloads

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/runtime/services"
)

// What informers keep must be all that is used.
func TestPodOfAStrippedPod(t *testing.T) {
	created := func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(1700000000, 0) }
	full := newPod("a", []string{"198.51.100.1", "2001:db8:1::1"}, says("off"), hostNetwork, ending, created)
	want, ok := podOf(full)
	strip := services.Stripper{Annotations: []string{Annotation}}
	stripped, err := strip.Strip(full.DeepCopy())
	must(t, err)
	if got, still := podOf(stripped.(*corev1.Pod)); got != want || !ok || !still {
		t.Errorf("%+v, want %+v", got, want)
	}
	if over, err := strip.Strip(newPod("a", nil, ended)); err != nil {
		t.Error(err)
	} else if _, ok := podOf(over.(*corev1.Pod)); ok {
		t.Error("a pod that has ended is none")
	}
}
