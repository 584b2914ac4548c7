package installer

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	installer "github.com/firsthop/firsthop/bootstrap/cluster"
)

const namespace = installer.Namespace

// player plays the DaemonSet controller and the kubelets of nodes: every pod does at once what its node's part says.
type player struct {
	t      testing.TB
	client kubernetes.Interface

	mu    sync.Mutex
	parts map[string]part
	order []string // the nodes, as they got pods of the DaemonSet
}

// part is what happens on a node.
type part struct {
	check, init, undo int    // exit codes
	says              string // by firsthop check, if it fails
	hostRuntime       bool   // one that is no pod
	kubeProxy         bool
}

func play(t testing.TB, client kubernetes.Interface) *player {
	p := &player{t: t, client: client, parts: map[string]part{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := p.turn(ctx); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
				t.Error("the player:", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p
}

func (p *player) part(node string) part {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.parts[node]
}

func (p *player) set(node string, part part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parts[node] = part
}

// served are the nodes that got a pod since the last call, in their order.
func (p *player) served() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	order := p.order
	p.order = nil
	return order
}

func (p *player) turn(ctx context.Context) error {
	pods, err := p.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if err := p.kubelet(ctx, &pods.Items[i]); err != nil {
			return err
		}
	}
	return p.controller(ctx, pods.Items)
}

// controller keeps one pod on each node that the DaemonSet's affinity takes.
func (p *player) controller(ctx context.Context, pods []corev1.Pod) error {
	ds, err := p.client.AppsV1().DaemonSets(namespace).Get(ctx, "firsthop", metav1.GetOptions{})
	gone := apierrors.IsNotFound(err)
	if err != nil && !gone {
		return err
	}
	nodes, err := p.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	replaced := false
	for _, n := range nodes.Items {
		var have *corev1.Pod
		for i := range pods {
			if pods[i].Spec.NodeName == n.Name && pods[i].Labels["app.kubernetes.io/name"] == "firsthop" {
				have = &pods[i]
			}
		}
		wanted := !gone && !slices.Contains([]string{"wait", "unsupported"}, n.Labels[installer.RolloutLabel])
		generation := ""
		if !gone {
			generation = ds.Annotations[appsv1.DeprecatedTemplateGeneration]
		}
		switch {
		case have == nil && wanted:
			if err := p.create(ctx, ds, n.Name, generation); err != nil {
				return err
			}
		case have == nil || have.DeletionTimestamp != nil:
		case !wanted,
			have.Labels["pod-template-generation"] != generation && ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType && !replaced:
			replaced = true
			if err := p.client.CoreV1().Pods(namespace).Delete(ctx, have.Name, metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *player) create(ctx context.Context, ds *appsv1.DaemonSet, node, generation string) error {
	spec := *ds.Spec.Template.Spec.DeepCopy()
	spec.NodeName = node
	labels := map[string]string{"pod-template-generation": generation}
	for k, v := range ds.Spec.Template.Labels {
		labels[k] = v
	}
	_, err := p.client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "firsthop-", Labels: labels}, Spec: spec}, metav1.CreateOptions{})
	if err == nil {
		p.mu.Lock()
		p.order = append(p.order, node)
		p.mu.Unlock()
	}
	return err
}

// kubelet does with a pod what its node's part says.
func (p *player) kubelet(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	if pod.DeletionTimestamp != nil {
		return p.client.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	}
	part := p.part(pod.Spec.NodeName)
	switch pod.Labels["app.kubernetes.io/name"] {
	case "firsthop-once":
		if pod.Status.Phase == corev1.PodPending {
			return p.once(ctx, pod, part)
		}
	case "firsthop":
		ended := len(pod.Status.InitContainerStatuses) > 0 && pod.Status.InitContainerStatuses[0].LastTerminationState.Terminated != nil
		if pod.Status.Phase == corev1.PodPending && (!ended || part.init == 0) {
			return p.serve(ctx, pod, part)
		}
	}
	return nil
}

func terminated(name string, code int, says string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(code), Message: says, Reason: "Ended"}}}
}

// once runs the commands of a pod that runs once. There is no log: no kubelet can be asked.
func (p *player) once(ctx context.Context, pod *corev1.Pod, part part) error {
	pod.Status.Phase = corev1.PodSucceeded
	for _, c := range pod.Spec.Containers {
		code, says := 0, "{}"
		switch c.Args[0] {
		case "check":
			if code = part.check; code != 0 {
				says = fmt.Sprintf(`{"findings":[{"check":"kernel","grade":"fail","sentence":%q}]}`, part.says)
			}
		case "status":
			if part.hostRuntime {
				says = `{"runtime":{}}`
			}
		case "uninstall":
			if code = part.undo; code != 0 && !slices.Contains(c.Args, "--force") {
				says = fmt.Sprintf(`{"error":%q}`, part.says)
			} else if !slices.Contains(c.Args, "--dry-run") {
				code, says = 0, `["a thing"]`
				if err := p.unmark(ctx, pod.Spec.NodeName); err != nil {
					return err
				}
			}
		}
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, terminated(c.Name, code, says))
	}
	_, err := p.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// serve runs the pod of the DaemonSet: init, then the runtime, which says so on its Node.
func (p *player) serve(ctx context.Context, pod *corev1.Pod, part part) error {
	if part.init != 0 {
		s := terminated("init", part.init, "prove: failed: no answer")
		s.LastTerminationState, s.State = s.State, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		s.RestartCount = 1
		pod.Status.InitContainerStatuses = []corev1.ContainerStatus{s}
		_, err := p.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		return err
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{terminated("init", 0, "")}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "firsthop", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := p.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return p.mark(ctx, pod.Spec.NodeName, "True", "Serving", "every Service is served at connect time")
}

func (p *player) mark(ctx context.Context, node, status, reason, message string) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"firsthop.io/proxy": "active"}},
		"status": map[string]any{"conditions": []any{map[string]any{
			"type": "FirsthopReady", "status": status, "reason": reason, "message": message, "lastHeartbeatTime": time.Now().UTC().Format(time.RFC3339),
		}}},
	})
	if err != nil {
		return err
	}
	_, err = p.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func (p *player) unmark(ctx context.Context, node string) error {
	const patch = `{"metadata":{"labels":{"firsthop.io/proxy":null}},"status":{"conditions":[{"type":"FirsthopReady","$patch":"delete"}]}}`
	_, err := p.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}

// addNode makes a Node whose kubelet is well, with a pod of kube-proxy where its part has one.
func (p *player) addNode(name string, part part, ready corev1.ConditionStatus) {
	p.t.Helper()
	ctx := context.Background()
	p.set(name, part)
	labels := map[string]string{"kubernetes.io/os": "linux"}
	if strings.HasPrefix(name, "cp") {
		labels["node-role.kubernetes.io/control-plane"] = ""
	}
	n, err := p.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	p.must(err)
	n.Status.NodeInfo = corev1.NodeSystemInfo{KernelVersion: "6.12.1", OSImage: "Debian", KubeletVersion: "v1.36.3"}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	_, err = p.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
	p.must(err)
	if part.kubeProxy {
		pod, err := p.client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy-" + name, Labels: map[string]string{"k8s-app": "kube-proxy"}},
			Spec:       corev1.PodSpec{NodeName: name, Containers: []corev1.Container{{Name: "kube-proxy", Image: "kube-proxy"}}},
		}, metav1.CreateOptions{})
		p.must(err)
		pod.Status.Phase = corev1.PodRunning
		_, err = p.client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		p.must(err)
	}
}

func (p *player) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}
