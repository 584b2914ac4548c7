package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bootstrap"
)

// pods are those of the DaemonSet that are not about to end, by their node.
func (w *work) pods() (map[string]*corev1.Pod, error) {
	var list corev1.PodList
	if err := w.list(w.ctx, podsPath, nameLabel+"="+ourName, &list); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		if p := &list.Items[i]; p.DeletionTimestamp == nil && p.Spec.NodeName != "" {
			pods[p.Spec.NodeName] = p
		}
	}
	return pods, nil
}

// rollOut writes the DaemonSet so that one node comes first, and others only when that one has proven that it serves. Nodes
// that have no pod yet wait by their label; where all have one, the first gets its new pod alone.
func (w *work) rollOut(ds, live object) error {
	pods, err := w.pods()
	if err != nil {
		return err
	}
	var later []*Node // without a pod
	for i := range w.rep.Cluster.Nodes {
		n := &w.rep.Cluster.Nodes[i]
		if !w.leftOut(n) && pods[n.Name] == nil {
			later = append(later, n)
		}
	}
	// Workers first: a control plane's node that fails costs more.
	slices.SortStableFunc(later, func(a, b *Node) int {
		if a.ControlPlane != b.ControlPlane {
			return cmp.Compare(map[bool]int{true: 1}[a.ControlPlane], map[bool]int{true: 1}[b.ControlPlane])
		}
		return cmp.Compare(a.Name, b.Name)
	})
	for _, n := range later {
		if err := w.relabel(n, Waits); err != nil {
			return err
		}
	}
	if err := w.upgrade(ds, live, pods); err != nil {
		return err
	}
	for size := 1; len(later) > 0; size *= 2 {
		batch := later[:min(size, len(later))]
		later = later[len(batch):]
		var names []string
		for _, n := range batch {
			if err := w.relabel(n, ""); err != nil {
				return err
			}
			names = append(names, n.Name)
		}
		if err := w.await(names); err != nil {
			return err
		}
	}
	var all []string
	for i := range w.rep.Cluster.Nodes {
		n := &w.rep.Cluster.Nodes[i]
		if !w.leftOut(n) {
			if err := w.relabel(n, ""); err != nil { // of an interrupted run, on a node that has its pod
				return err
			}
			all = append(all, n.Name)
		}
	}
	return w.await(all)
}

func (w *work) leftOut(n *Node) bool {
	return n.Rollout == Unsupported || slices.Contains(w.LeaveOut, n.Name)
}

// upgrade writes the DaemonSet. Where it exists and its pods would be replaced, one node gets its new pod first.
func (w *work) upgrade(ds, live object, pods map[string]*corev1.Pod) error {
	if live == nil || len(pods) == 0 {
		return w.write(ds)
	}
	planned, err := w.apply(w.ctx, ds, w.Force, true)
	if err != nil {
		return err
	}
	before, err := typed(live)
	if err != nil {
		return err
	}
	after, err := typed(planned)
	if err != nil {
		return err
	}
	if reflect.DeepEqual(before.Spec.Template, after.Spec.Template) && !isOnDelete(before) {
		return w.write(ds)
	}
	held := ds.content()
	held["spec"].(map[string]any)["updateStrategy"] = map[string]any{"type": string(appsv1.OnDeleteDaemonSetStrategyType)}
	if err := w.write(held); err != nil {
		return err
	}
	now, err := w.read(w.ctx, ds)
	if err != nil {
		return err
	}
	set, err := typed(now)
	if err != nil {
		return err
	}
	first := ""
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		if first == "" || isCurrent(pods[name], set) {
			first = name
		}
	}
	if p := pods[first]; !isCurrent(p, set) {
		if err := w.remove(w.ctx, podsPath+"/"+p.Name, nil); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.Name, err)
		}
		w.rep.Changes = append(w.rep.Changes, "replaced the pod on node "+first)
	}
	if err := w.await([]string{first}); err != nil {
		return err
	}
	return w.write(ds)
}

// isCurrent reports whether a pod is of the DaemonSet's present template.
func isCurrent(p *corev1.Pod, set *appsv1.DaemonSet) bool {
	return p != nil && p.Labels["pod-template-generation"] != "" && p.Labels["pod-template-generation"] == generationOf(set)
}

func generationOf(set *appsv1.DaemonSet) string {
	return set.Annotations[appsv1.DeprecatedTemplateGeneration]
}

// progress is how far a node is.
type progress struct {
	done   bool
	failed string // why it will not be
	waits  string
	pod    *corev1.Pod
	in     string // the container that failed, or that is awaited
}

// await waits until nodes have proven that they serve, with a pod of the present template. The first that fails ends it.
func (w *work) await(nodes []string) error {
	const step = "wait"
	told := map[string]bool{}
	for end := time.Now().Add(w.Patience); ; {
		states, err := w.progress(nodes)
		if err != nil {
			return err
		}
		var waiting []string
		for _, name := range nodes {
			s := states[name]
			switch {
			case s.failed != "":
				return w.broken(name, s)
			case !s.done:
				waiting = append(waiting, name+" ("+s.waits+")")
			case !told[name] && !w.toldBefore(step, name):
				told[name] = true
				w.say(step, "node %s serves every Service at connect time", name)
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		if time.Now().After(end) {
			w.rep.Next = []string{"run it again: it continues where it stopped"}
			if i := slices.IndexFunc(nodes, func(name string) bool { s := states[name]; return !s.done && s.pod != nil }); i >= 0 {
				w.showLog(states[nodes[i]])
				w.rep.Next = append(w.rep.Next, logsCommand(states[nodes[i]].pod))
			}
			return w.stop(bootstrap.ExitProof, "no proof within %v from %s; nodes that wait for their turn are as they were", w.Patience, strings.Join(waiting, ", "))
		}
		if err := wait(w.ctx, pollPause); err != nil {
			return err
		}
	}
}

func (w *work) toldBefore(step, node string) bool {
	return slices.ContainsFunc(w.rep.Steps, func(s Step) bool {
		return s.Step == step && strings.HasPrefix(s.Text, "node "+node+" ")
	})
}

// progress looks at nodes.
func (w *work) progress(names []string) (map[string]progress, error) {
	live, err := w.read(w.ctx, object{"kind": "DaemonSet", "metadata": map[string]any{"name": ourName}})
	if err != nil {
		return nil, err
	}
	if live == nil {
		return nil, fmt.Errorf("DaemonSet %s/%s is gone: somebody removed it", Namespace, ourName)
	}
	set, err := typed(live)
	if err != nil {
		return nil, err
	}
	pods, err := w.pods()
	if err != nil {
		return nil, err
	}
	var nodes corev1.NodeList
	if err := w.get(w.ctx, "/api/v1/nodes", &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	says := map[string]Node{}
	for i := range nodes.Items {
		says[nodes.Items[i].Name] = nodeOf(&nodes.Items[i])
	}
	out := map[string]progress{}
	for _, name := range names {
		n, there := says[name]
		if !there {
			out[name] = progress{done: true} // it was removed meanwhile
			continue
		}
		out[name] = progressOf(pods[name], set, n)
	}
	return out, nil
}

func progressOf(p *corev1.Pod, set *appsv1.DaemonSet, n Node) progress {
	s := progress{pod: p}
	switch {
	case p == nil:
		s.waits = "it has no pod yet"
		return s
	case !isCurrent(p, set):
		s.waits = "its pod is the former one"
		return s
	}
	for _, c := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
		ended := c.State.Terminated
		if ended == nil && c.RestartCount > 0 {
			ended = c.LastTerminationState.Terminated
		}
		running := c.State.Running != nil || c.Ready
		if ended != nil && ended.ExitCode != 0 && !running {
			s.in, s.failed = c.Name, fmt.Sprintf("its container %s ended with exit code %d: %s", c.Name, ended.ExitCode, lastLine(ended.Message))
			return s
		}
	}
	switch {
	case isHopeless(p):
		why, in := waitingFor(p)
		s.failed, s.in = "its pod can't start: "+why, in
	case !isReady(p):
		s.waits, s.in = "its pod is "+stateOfPod(p), unready(p)
	case n.ConnectTime.Proven:
		s.done = true
	case n.ConnectTime.Reason == "ProofFailed":
		s.in = ourName
		if said, err := time.Parse(time.RFC3339, n.ConnectTime.Said); err == nil && said.After(startOf(p)) {
			s.failed = "it is not served: " + n.ConnectTime.Message
		}
		s.waits = n.ConnectTime.Message
	default:
		s.waits, s.in = n.ConnectTime.Message, ourName
	}
	return s
}

// stateOfPod is its phase, and what it waits for.
func stateOfPod(p *corev1.Pod) string {
	why, _ := waitingFor(p)
	return strings.TrimSpace(string(p.Status.Phase) + " " + why)
}

func startOf(p *corev1.Pod) time.Time {
	if p.Status.StartTime == nil {
		return p.CreationTimestamp.Time
	}
	return p.Status.StartTime.Time
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// lastLog is how many lines of a log are shown.
const lastLog = 15

// broken ends a roll-out at a node that fails.
func (w *work) broken(name string, s progress) error {
	w.showLog(s)
	w.rep.Next = []string{
		logsCommand(s.pod),
		"firsthop cluster install                 again, when it is repaired: it continues where it stopped",
		"firsthop cluster install --leave-out " + name + "   without this node",
		"firsthop cluster uninstall               undoes all of it",
	}
	return w.stop(bootstrap.ExitProof, "node %s fails, and the roll-out stops there: %s", name, s.failed)
}

// showLog puts the end of a pod's log into the report: of the container that failed or is awaited, or of the one before it.
func (w *work) showLog(s progress) {
	if s.in == "" {
		return
	}
	text := strings.TrimSpace(w.log(w.ctx, s.pod.Name, s.in, false))
	if text == "" {
		text = strings.TrimSpace(w.log(w.ctx, s.pod.Name, s.in, true))
	}
	if text != "" {
		lines := strings.Split(text, "\n")
		w.rep.Log = lines[max(0, len(lines)-lastLog):]
	}
}

func logsCommand(p *corev1.Pod) string {
	return fmt.Sprintf("kubectl -n %s logs %s --all-containers --prefix", Namespace, p.Name)
}

// isOnDelete reports whether a DaemonSet is in the middle of an upgrade.
func isOnDelete(set *appsv1.DaemonSet) bool {
	return set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType
}
