package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
)

// Uninstall undoes firsthop on every node and in the cluster: what install wrote becomes what it was before. It refuses where a
// node needs the Service IP to start, or nothing else serves Service addresses. Interrupted anywhere, the next call does
// the rest.
func Uninstall(ctx context.Context, cfg Config) (*Report, error) {
	w, err := newWork(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return w.finish(w.uninstall())
}

func (w *work) uninstall() error {
	if err := w.needRights(uninstallRights()); err != nil {
		return err
	}
	r, err := w.readRecord(w.ctx)
	if err != nil {
		return err
	}
	values := w.Values
	if r != nil {
		values = r.Values
	} else if image, err := w.liveImage(); err != nil {
		return err
	} else if image != "" {
		values.Image = image
	}
	objects, err := render(values)
	if err != nil {
		return err
	}
	if w.rep.Cluster, err = w.look(w.ctx); err != nil {
		return err
	}
	there, err := w.existing(objects)
	if err != nil {
		return err
	}
	if len(there) == 0 && r == nil && !w.marked() {
		w.rep.Sentence = "nothing of firsthop's is in this cluster"
		return nil
	}
	ds := daemonSetOf(objects)
	if err := w.mayUninstall(ds); err != nil {
		return err
	}
	if w.DryRun {
		for _, o := range slices.Backward(objects) {
			if there[o.String()] {
				w.rep.Changes = append(w.rep.Changes, w.undoing(o, r))
			}
		}
		w.rep.Sentence = "dry run: nothing was changed; on each node it would run firsthop uninstall"
		return nil
	}
	return w.undo(objects, ds, r, there)
}

// liveImage is that of a DaemonSet that was not made by install, "": there is none.
func (w *work) liveImage() (string, error) {
	live, err := w.read(w.ctx, object{"kind": "DaemonSet", "metadata": map[string]any{"name": ourName}})
	if err != nil || live == nil {
		return "", err
	}
	set, err := typed(live)
	if err != nil {
		return "", err
	}
	for _, c := range set.Spec.Template.Spec.InitContainers {
		return c.Image, nil
	}
	return "", nil
}

// undoing says what is done to an object.
func (w *work) undoing(o object, r *record) string {
	if r != nil && r.Former[o.String()] != nil {
		return "restore " + o.String()
	}
	return "remove " + o.String()
}

// existing are those of our objects that are there.
func (w *work) existing(objects []object) (map[string]bool, error) {
	there := map[string]bool{}
	for _, o := range objects {
		now, err := w.read(w.ctx, o)
		if err != nil {
			return nil, err
		}
		if now != nil {
			there[o.String()] = true
		}
	}
	return there, nil
}

// marked reports whether a node says anything of firsthop.
func (w *work) marked() bool {
	return slices.ContainsFunc(w.rep.Cluster.Nodes, func(n Node) bool { return isMarked(n) || n.Rollout != "" })
}

func isMarked(n Node) bool { return n.Mode != "" || n.ConnectTime.Said != "" }

// served are the nodes on which something of firsthop's may be.
func (w *work) served() (names, unreachable []string) {
	for _, n := range w.rep.Cluster.Nodes {
		switch {
		case slices.Contains(w.LeaveOut, n.Name):
		case n.Unreachable:
			unreachable = append(unreachable, n.Name)
		default:
			names = append(names, n.Name)
		}
	}
	return names, unreachable
}

// The commands of an uninstall, on each node.
var (
	wouldUndo = map[string][]string{"uninstall": {"uninstall", "--dry-run", "-o", "json"}}
	undoHost  = map[string][]string{"uninstall": {"uninstall", "-o", "json"}}
	forceHost = map[string][]string{"uninstall": {"uninstall", "--force", "-o", "json"}}
)

// mayUninstall asks every node whether it needs firsthop. Nothing is changed.
func (w *work) mayUninstall(ds object) error {
	nodes, unreachable := w.served()
	var reasons []string
	for _, name := range unreachable {
		reasons = append(reasons, fmt.Sprintf("node %s is unreachable, and would keep what firsthop changed on it: bring it back, or --leave-out %s", name, name))
	}
	if !w.Force {
		for _, name := range nodes {
			if n := w.node(name); !n.KubeProxy && isMarked(*n) && w.rep.Cluster.Replaces == "" && !strings.HasPrefix(w.rep.Cluster.KubeProxy, "in the process") {
				reasons = append(reasons, fmt.Sprintf("node %s: nothing else serves Service addresses there: no kube-proxy runs on it (--force undoes it all the same)", name))
			}
		}
		if w.rep.Cluster.ControlPlaneEndpoint != "" && len(reasons) == 0 {
			w.say("look", "controlPlaneEndpoint of kubeadm: %s", w.rep.Cluster.ControlPlaneEndpoint)
		}
	}
	if len(reasons) > 0 {
		return w.refuse(reasons)
	}
	if w.DryRun || w.Force {
		return nil // each node would need a pod
	}
	results, err := w.onNodes(w.ctx, ds, nodes, wouldUndo, w.Patience)
	if err != nil {
		return err
	}
	stranded := false
	for _, r := range results {
		switch text := saidBy(r); {
		case r.err != nil:
			reasons = append(reasons, fmt.Sprintf("node %s can't be asked: %v", r.node, r.err))
		case r.exit["uninstall"] == int(bootstrap.ExitStranded):
			stranded = true
			reasons = append(reasons, fmt.Sprintf("node %s: %s", r.node, text))
		}
	}
	if len(reasons) == 0 {
		w.say("ask", "none of %d nodes needs firsthop to start", len(nodes))
		return nil
	}
	if stranded {
		w.rep.Refusals = reasons
		return w.stop(bootstrap.ExitStranded, "refused, and nothing was changed: nodes need the Service IP to start")
	}
	return w.refuse(reasons)
}

// saidBy is the error that a node's uninstall printed.
func saidBy(r onNode) string {
	var failure struct {
		Error string `json:"error"`
	}
	text := r.output["uninstall"]
	if json.Unmarshal([]byte(text), &failure) == nil && failure.Error != "" {
		return failure.Error
	}
	return lastLine(text)
}

// undo removes: first what would bring it back, then what is on the hosts, then the rest; the record goes last.
func (w *work) undo(objects []object, ds object, r *record, there map[string]bool) error {
	restores := r != nil && r.Former[ds.String()] != nil
	p, err := ds.path()
	if err != nil {
		return err
	}
	if there[ds.String()] {
		if err := w.remove(w.ctx, p, nil); err != nil {
			return err
		}
		w.did("undo", "removed %s", ds)
	}
	if err := w.awaitNoPods(); err != nil {
		return err
	}
	if !restores { // a former DaemonSet keeps its hosts
		if err := w.undoHosts(ds); err != nil {
			return err
		}
	}
	for _, o := range slices.Backward(objects) {
		former := object(nil)
		if r != nil {
			former = r.Former[o.String()]
		}
		if !there[o.String()] && former == nil {
			continue
		}
		if err := w.restore(w.ctx, o, former); err != nil {
			return fmt.Errorf("undo %s: %w", o, err)
		}
		switch {
		case former != nil:
			w.did("undo", "restored %s", o)
		case o.kind() != "DaemonSet":
			w.did("undo", "removed %s", o)
		}
	}
	for i := range w.rep.Cluster.Nodes {
		if err := w.unmark(&w.rep.Cluster.Nodes[i], restores); err != nil {
			return err
		}
	}
	rec := object{"kind": "ConfigMap", "metadata": map[string]any{"name": RecordName}}
	if r != nil {
		p, err := rec.path()
		if err != nil {
			return err
		}
		if err := w.remove(w.ctx, p, nil); err != nil {
			return err
		}
		w.did("undo", "removed %s", rec)
	}
	w.rep.Sentence = fmt.Sprintf("firsthop is gone from this cluster: %d changes were undone", len(w.rep.Changes))
	return nil
}

// awaitNoPods waits for the end of the DaemonSet's pods: a runtime would bring back what is removed.
func (w *work) awaitNoPods() error {
	for end := time.Now().Add(w.Patience); ; {
		var list corev1.PodList
		if err := w.list(w.ctx, podsPath, nameLabel+"="+ourName, &list); err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		var left []string
		for _, p := range list.Items {
			if n := w.node(p.Spec.NodeName); !n.Unreachable {
				left = append(left, p.Name)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			w.rep.Next = []string{"run it again: it continues where it stopped"}
			return w.stop(bootstrap.ExitInternal, "pods did not end within %v: %s", w.Patience, few(left))
		}
		if err := wait(w.ctx, pollPause); err != nil {
			return err
		}
	}
}

// undoHosts runs firsthop uninstall on every node.
func (w *work) undoHosts(ds object) error {
	nodes, _ := w.served()
	commands := undoHost
	if w.Force {
		commands = forceHost
	}
	results, err := w.onNodes(w.ctx, ds, nodes, commands, w.Patience)
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "RESULT", "WHY"}}
	var failed []string
	code := bootstrap.ExitInternal
	for _, r := range results {
		switch exit := r.exit["uninstall"]; {
		case r.err != nil:
			failed = append(failed, r.node)
			rows = append(rows, []string{r.node, string(diagnose.Fail), r.err.Error()})
		case exit != 0:
			failed, code = append(failed, r.node), bootstrap.ExitCode(exit)
			rows = append(rows, []string{r.node, string(diagnose.Fail), saidBy(r)})
		default:
			rows = append(rows, []string{r.node, string(diagnose.OK), undoneBy(r)})
		}
	}
	grade := diagnose.OK
	if len(failed) > 0 {
		grade = diagnose.Fail
	}
	w.tell(Step{Step: "hosts", Result: grade, Text: fmt.Sprintf("firsthop is gone from %d of %d nodes", len(results)-len(failed), len(results)), Rows: rows})
	if len(failed) > 0 {
		w.rep.Next = []string{
			"these nodes serve on: what is attached needs no process",
			"firsthop cluster uninstall   again, when they are repaired: it continues where it stopped",
			"firsthop cluster install     brings firsthop back",
		}
		return w.stop(code, "not undone on %s", few(failed))
	}
	return nil
}

// undoneBy counts what a node's uninstall removed.
func undoneBy(r onNode) string {
	var removed []any
	if json.Unmarshal([]byte(r.output["uninstall"]), &removed) != nil {
		return "done"
	}
	return fmt.Sprintf("removed %d things", len(removed))
}

// unmark takes labels and the condition off a node, where they are left.
func (w *work) unmark(n *Node, keep bool) error {
	if err := w.relabel(n, ""); err != nil {
		return err
	}
	var now corev1.Node
	there, err := w.optional(w.ctx, "/api/v1/nodes/"+n.Name, &now)
	if err != nil || !there || keep {
		return err
	}
	_, label := now.Labels[query.NodeLabel]
	condition := slices.ContainsFunc(now.Status.Conditions, func(c corev1.NodeCondition) bool { return string(c.Type) == query.NodeCondition })
	if !label && !condition {
		return nil
	}
	if err := w.removeMarks(n.Name); err != nil {
		return fmt.Errorf("remove the label and the condition of node %s: %w", n.Name, err)
	}
	w.did("undo", "removed label %s and condition %s of node %s", query.NodeLabel, query.NodeCondition, n.Name)
	return nil
}

// removeMarks is one patch of the status, as the runtime's own are.
func (w *work) removeMarks(node string) error {
	patch := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{query.NodeLabel: nil}},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": query.NodeCondition, "$patch": "delete"}}},
	}
	return w.do(w.ctx, request{method: "PATCH", path: "/api/v1/nodes/" + node + "/status", kind: "application/strategic-merge-patch+json", body: patch})
}
