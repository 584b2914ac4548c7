package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	podsPath  = "/api/v1/namespaces/" + Namespace + "/pods"
	nameLabel = "app.kubernetes.io/name"
	ourName   = "firsthop"
	// onceName is the label of pods that run one command on a node.
	onceName = "firsthop-once"
	// onceLives is how long one may take; the kubelet ends it then.
	onceLives = 3 * time.Minute
	// cleanupTimeout is how long an interrupted command takes to remove these pods.
	cleanupTimeout = 3 * time.Second
)

// onNode is the result of a command on a node.
type onNode struct {
	node   string
	exit   map[string]int    // by command
	output map[string]string // what it wrote, as far as it can be read
	err    error             // it did not run
}

// onNodes runs commands of this program on nodes, each in a container of one pod a node, which has what the init container has. The
// pods are removed in the end; those that a killed run has left, at the beginning.
func (c *client) onNodes(ctx context.Context, ds object, nodes []string, commands map[string][]string, patience time.Duration) ([]onNode, error) {
	if err := c.removeOnce(ctx); err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		_ = c.removeOnce(ctx) // the next run does it
	}()
	for _, node := range nodes {
		pod, err := oncePod(ds, node, commands)
		if err != nil {
			return nil, err
		}
		if err := c.createPod(ctx, pod, false); err != nil {
			return nil, err
		}
	}
	return c.awaitOnce(ctx, nodes, commands, patience)
}

// createPod makes a pod; one of that name that is there is from the same request, sent before.
func (c *client) createPod(ctx context.Context, pod *corev1.Pod, dry bool) error {
	q := url.Values{"fieldManager": {Manager}}
	if dry {
		q.Set("dryRun", "All")
	}
	err := c.do(ctx, request{method: http.MethodPost, path: podsPath, query: q, kind: "application/json", body: pod})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create a pod on node %s: %w", pod.Spec.NodeName, err)
	}
	return nil
}

// oncePod is the init container of a DaemonSet, with other commands. It is bound to its node: it needs no scheduler, and
// runs where a node is cordoned.
func oncePod(ds object, node string, commands map[string][]string) (*corev1.Pod, error) {
	set, err := typed(ds)
	if err != nil {
		return nil, err
	}
	spec := set.Spec.Template.Spec
	if len(spec.InitContainers) != 1 {
		return nil, fmt.Errorf("the DaemonSet has %d init containers: want one", len(spec.InitContainers))
	}
	init := spec.InitContainers[0]
	spec.InitContainers, spec.Containers, spec.Affinity = nil, nil, nil
	for name, args := range commands {
		one := init
		one.Name, one.Args = name, args
		spec.Containers = append(spec.Containers, one)
	}
	slices.SortFunc(spec.Containers, func(a, b corev1.Container) int { return strings.Compare(a.Name, b.Name) })
	no, lives := false, int64(onceLives/time.Second)
	spec.NodeName, spec.RestartPolicy = node, corev1.RestartPolicyNever
	spec.AutomountServiceAccountToken, spec.ActiveDeadlineSeconds = &no, &lives
	spec.ServiceAccountName = "" // it is not there before the first install
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(node))
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%016x", onceName, hash.Sum64()), Namespace: Namespace, Labels: map[string]string{nameLabel: onceName},
		},
		Spec: spec,
	}, nil
}

// typed decodes a DaemonSet.
func typed(ds object) (*appsv1.DaemonSet, error) {
	var set appsv1.DaemonSet
	data, err := json.Marshal(ds)
	if err == nil {
		err = json.Unmarshal(data, &set)
	}
	if err != nil {
		return nil, fmt.Errorf("read the DaemonSet: %w", err)
	}
	return &set, nil
}

// removeOnce ends the pods of onNodes, and waits until they are gone.
func (c *client) removeOnce(ctx context.Context) error {
	now := int64(0)
	for {
		var pods corev1.PodList
		if err := c.list(ctx, podsPath, nameLabel+"="+onceName, &pods); err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		if len(pods.Items) == 0 {
			return nil
		}
		for _, p := range pods.Items {
			if err := c.remove(ctx, podsPath+"/"+p.Name, &now); err != nil {
				return fmt.Errorf("remove pod %s: %w", p.Name, err)
			}
		}
		if err := wait(ctx, pollPause); err != nil {
			return err
		}
	}
}

// pollPause is between two looks at what is awaited.
const pollPause = 300 * time.Millisecond

// awaitOnce waits for the end of every pod, and reads what it wrote.
func (c *client) awaitOnce(ctx context.Context, nodes []string, commands map[string][]string, patience time.Duration) ([]onNode, error) {
	results := map[string]onNode{}
	for end := time.Now().Add(patience); ; {
		var pods corev1.PodList
		if err := c.list(ctx, podsPath, nameLabel+"="+onceName, &pods); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if _, have := results[p.Spec.NodeName]; have {
				continue
			}
			if r, over := c.resultOf(ctx, p, commands); over {
				results[p.Spec.NodeName] = r
			}
		}
		late := time.Now().After(end)
		var list []onNode
		for _, node := range nodes {
			r, have := results[node]
			if !have && late {
				r, have = onNode{node: node, err: fmt.Errorf("no result within %v: is its kubelet running?%s", patience, stateOf(pods.Items, node))}, true
			}
			if have {
				list = append(list, r)
			}
		}
		if len(list) == len(nodes) {
			return list, nil
		}
		if err := wait(ctx, pollPause); err != nil {
			return nil, err
		}
	}
}

// stateOf says what is known of a node's pod.
func stateOf(pods []corev1.Pod, node string) string {
	for i := range pods {
		if p := &pods[i]; p.Spec.NodeName == node {
			if why, _ := waitingFor(p); why != "" {
				return " Its pod waits: " + why
			}
			return " Its pod is " + string(p.Status.Phase)
		}
	}
	return ""
}

// waitingFor is why a pod's first container that waits does so, and the container's name.
func waitingFor(p *corev1.Pod) (why, container string) {
	for _, s := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
			return strings.TrimSpace(w.Reason + ": " + w.Message), s.Name
		}
	}
	return "", ""
}

// unready is a pod's first container that is not done, "": there is none.
func unready(p *corev1.Pod) string {
	for _, s := range p.Status.InitContainerStatuses {
		if t := s.State.Terminated; t == nil || t.ExitCode != 0 {
			return s.Name
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		if !s.Ready {
			return s.Name
		}
	}
	return ""
}

// hopeless are the reasons for which a container waits, of which none ends by itself.
var hopeless = []string{
	"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError",
	"RunContainerError", "CrashLoopBackOff",
}

func isHopeless(p *corev1.Pod) bool {
	why, _ := waitingFor(p)
	reason, _, _ := strings.Cut(why, ":")
	return slices.Contains(hopeless, reason)
}

// resultOf reads the result of a pod. over: it has one.
func (c *client) resultOf(ctx context.Context, p *corev1.Pod, commands map[string][]string) (r onNode, over bool) {
	r = onNode{node: p.Spec.NodeName, exit: map[string]int{}, output: map[string]string{}}
	if isHopeless(p) {
		why, _ := waitingFor(p)
		r.err = fmt.Errorf("its pod can't start: %s", why)
		return r, true
	}
	if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		return r, false
	}
	for _, s := range p.Status.ContainerStatuses {
		if _, ours := commands[s.Name]; !ours || s.State.Terminated == nil {
			continue
		}
		r.exit[s.Name] = int(s.State.Terminated.ExitCode)
		if r.output[s.Name] = c.log(ctx, p.Name, s.Name, false); r.output[s.Name] == "" {
			r.output[s.Name] = s.State.Terminated.Message // the end of it
		}
	}
	if len(r.exit) < len(commands) {
		r.err = fmt.Errorf("its pod ended without a result: %s", strings.TrimSpace(p.Status.Reason+" "+p.Status.Message))
	}
	return r, true
}

// log reads what a container wrote, "" where that can't be read. previous: what the one before the last restart wrote.
func (c *client) log(ctx context.Context, pod, container string, previous bool) string {
	q := url.Values{"container": {container}}
	if previous {
		q.Set("previous", "true")
	}
	var text []byte
	if c.do(ctx, request{method: http.MethodGet, path: podsPath + "/" + pod + "/log", query: q, into: &text, once: true}) != nil {
		return ""
	}
	return string(text)
}
