package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/deploy"
)

// Config is what the commands need.
type Config struct {
	REST    *rest.Config
	Version string
	Values  deploy.Values
	// LeaveOut are nodes that are not to be served. An install remembers them, until one has them in Include.
	LeaveOut, Include []string
	// Force takes over fields of our objects that somebody else has set (install), or undoes where nothing else serves
	// Service addresses (uninstall).
	Force  bool
	DryRun bool
	// Patience is how long one node may take, and one batch of nodes.
	Patience time.Duration
	// Progress is called for every step as it ends; nil: it is not called.
	Progress func(Step)
}

// Step is one line of a command's progress.
type Step struct {
	Step   string         `json:"step"`
	Result diagnose.Grade `json:"result"`
	Text   string         `json:"text"`
	Rows   [][]string     `json:"rows,omitempty"` // a table below it, with its headers
}

// Report is what a command did. JSON is API.
type Report struct {
	Result   diagnose.Grade     `json:"result"`
	Sentence string             `json:"sentence"`
	ExitCode bootstrap.ExitCode `json:"exit_code"`
	DryRun   bool               `json:"dry_run,omitempty"`
	Steps    []Step             `json:"steps"`
	Cluster  *Facts             `json:"cluster,omitempty"`
	Checks   []Checked          `json:"checks,omitempty"`
	Changes  []string           `json:"changes"` // done, or in a dry run what would be done
	Refusals []string           `json:"refusals,omitempty"`
	Log      []string           `json:"log,omitempty"` // of what failed
	Next     []string           `json:"next,omitempty"`
}

// work is a command at work.
type work struct {
	Config
	*client
	ctx context.Context
	rep *Report
}

// Namespace is where everything is.
const Namespace = deploy.Namespace

func newWork(ctx context.Context, cfg Config) (*work, error) {
	c, err := newClient(cfg.REST)
	if err != nil {
		return nil, err
	}
	cfg.Patience = cmp.Or(cfg.Patience, 5*time.Minute)
	return &work{cfg, c, ctx, &Report{Result: diagnose.OK, DryRun: cfg.DryRun, Steps: []Step{}, Changes: []string{}}}, nil
}

// say adds a step that went well.
func (w *work) say(step, format string, args ...any) {
	w.tell(Step{Step: step, Result: diagnose.OK, Text: fmt.Sprintf(format, args...)})
}

func (w *work) tell(s Step) {
	w.rep.Steps = append(w.rep.Steps, s)
	if w.Progress != nil {
		w.Progress(s)
	}
}

// errStop ends a command whose report says why.
var errStop = errors.New("stopped")

// stop is what a command ends with where it did not do what it was asked for.
func (w *work) stop(code bootstrap.ExitCode, format string, args ...any) error {
	w.rep.Result, w.rep.ExitCode, w.rep.Sentence = diagnose.Fail, code, fmt.Sprintf(format, args...)
	return errStop
}

func (w *work) refuse(reasons []string) error {
	w.rep.Refusals = reasons
	return w.stop(bootstrap.ExitInternal, "refused, and nothing was changed")
}

// finish returns the report, or an error that no report is about.
func (w *work) finish(err error) (*Report, error) {
	if err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return w.rep, nil
}

// Install brings firsthop to every node of a cluster that can run it. Interrupted anywhere, the next call does the rest.
func Install(ctx context.Context, cfg Config) (*Report, error) {
	w, err := newWork(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return w.finish(w.install())
}

func (w *work) install() error {
	objects, err := render(w.Values)
	if err != nil {
		return err
	}
	ds := daemonSetOf(objects)
	if err := w.mayInstall(objects, ds); err != nil {
		return err
	}
	if w.DryRun {
		return w.planInstall(objects)
	}
	live, err := w.read(w.ctx, ds)
	if err != nil {
		return err
	}
	if err := w.preflight(ds, live); err != nil {
		return err
	}
	if err := w.record(objects); err != nil {
		return err
	}
	for _, o := range objects {
		if o.kind() == "DaemonSet" {
			continue
		}
		if err := w.write(o); err != nil {
			return err
		}
	}
	if err := w.rollOut(ds, live); err != nil {
		return err
	}
	return w.sum()
}

// mayInstall looks, and refuses with all reasons at once. Nothing is written.
func (w *work) mayInstall(objects []object, ds object) error {
	missing, err := w.missing(w.ctx, installRights())
	if err != nil {
		return fmt.Errorf("ask for the rights of this user: %w", err)
	}
	if len(missing) > 0 {
		for i := range missing {
			missing[i] = "this user lacks a right: " + missing[i]
		}
		return w.refuse(missing)
	}
	f, err := w.look(w.ctx)
	if err != nil {
		return err
	}
	w.rep.Cluster = f
	w.say("look", "Kubernetes %s at %s, %d nodes with Linux, provider %s", f.Kubernetes, f.Server, len(f.Nodes), f.Provider)
	w.say("look", "kube-proxy: %s", kubeProxySentence(f))
	if f.ControlPlaneEndpoint != "" {
		w.say("look", "controlPlaneEndpoint of kubeadm: %s", f.ControlPlaneEndpoint)
	}
	if f.ServicesEndpoint != "" {
		w.say("look", "API server of the ConfigMap kubernetes-services-endpoint: %s", f.ServicesEndpoint)
	}
	reasons := w.reasons(f)
	if err := w.recallLeftOut(f); err != nil {
		return err
	}
	for _, n := range f.Nodes {
		if n.Unreachable && !slices.Contains(w.LeaveOut, n.Name) {
			reasons = append(reasons, fmt.Sprintf("node %s is unreachable (its kubelet says nothing): bring it back, or --leave-out %s", n.Name, n.Name))
		}
	}
	if len(reasons) == 0 && len(f.Nodes) > 0 { // what the API server itself refuses: PodSecurity, webhooks, fields of others
		pod, err := oncePod(ds, f.Nodes[0].Name, preflightCommands)
		if err != nil {
			return err
		}
		if err := w.tryPod(pod); err != nil {
			reasons = append(reasons, fmt.Sprintf("pods like those of firsthop are refused: %v", err))
		}
		for _, o := range objects {
			if _, err := w.apply(w.ctx, o, w.Force, true); err != nil {
				reasons = append(reasons, conflict(err))
			}
		}
	}
	if len(reasons) > 0 {
		return w.refuse(reasons)
	}
	return nil
}

// accountTime is how long a new cluster may take to have the account that pods without one get.
const accountTime = time.Minute

// tryPod asks whether a pod would be accepted. kubeadm is done some seconds before the controller manager has made the
// namespaces' default accounts, without which no pod is.
func (w *work) tryPod(pod *corev1.Pod) error {
	for end := time.Now().Add(accountTime); ; {
		err := w.createPod(w.ctx, pod, true)
		if err == nil || !strings.Contains(err.Error(), `serviceaccount "default" not found`) || time.Now().After(end) {
			return err
		}
		if wait(w.ctx, retryPause) != nil {
			return err
		}
	}
}

func kubeProxySentence(f *Facts) string {
	if f.KubeProxy == "none" {
		return "none"
	}
	on := 0
	for _, n := range f.Nodes {
		if n.KubeProxy {
			on++
		}
	}
	s := fmt.Sprintf("%s, on %d of %d nodes; it is not touched", f.KubeProxy, on, len(f.Nodes))
	if f.KubeProxyManager != "" {
		s += " (managed by " + f.KubeProxyManager + ")"
	}
	return s
}

// conflict says what to do about fields that somebody else has set.
func conflict(err error) string {
	if apierrors.IsConflict(err) {
		return err.Error() + "; --force takes these fields over"
	}
	return err.Error()
}

// reasons are those against an install that the look has found.
func (w *work) reasons(f *Facts) (out []string) {
	if tooOld(f.Kubernetes) {
		out = append(out, fmt.Sprintf("Kubernetes is %s: 1.%d or later is needed, whose tokens say on which node a pod runs", f.Kubernetes, oldestMinor))
	}
	if f.Replaces != "" {
		out = append(out, f.Replaces+" serves Services in the place of kube-proxy already: two such dataplanes take connections from each other")
	}
	if len(f.Nodes) == 0 {
		out = append(out, "the cluster has no node with Linux")
	}
	for _, list := range []struct {
		flag  string
		names []string
	}{{"--leave-out", w.LeaveOut}, {"--include", w.Include}} {
		for _, name := range list.names {
			if !f.has(name) {
				out = append(out, list.flag+" "+name+": there is no such node")
			}
		}
	}
	for _, name := range w.Include {
		if slices.Contains(w.LeaveOut, name) {
			out = append(out, "node "+name+" is to be left out and included")
		}
	}
	return out
}

func (f *Facts) has(node string) bool {
	return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.Name == node })
}

// recallLeftOut adds the nodes that former installs left out, as long as they are there and not to be included.
func (w *work) recallLeftOut(f *Facts) error {
	r, err := w.readRecord(w.ctx)
	if err != nil || r == nil {
		return err
	}
	for _, name := range r.LeftOut {
		if f.has(name) && !slices.Contains(w.Include, name) && !slices.Contains(w.LeaveOut, name) {
			w.LeaveOut = append(w.LeaveOut, name)
			w.say("look", "node %s is left out, as before; --include %s brings it in", name, name)
		}
	}
	return nil
}

// planInstall says what would be written.
func (w *work) planInstall(objects []object) error {
	for _, o := range objects {
		before, err := w.read(w.ctx, o)
		if err != nil {
			return err
		}
		after, err := w.apply(w.ctx, o, w.Force, true)
		if err != nil {
			return err
		}
		switch {
		case before == nil:
			w.rep.Changes = append(w.rep.Changes, "create "+o.String())
		case changed(before, after):
			w.rep.Changes = append(w.rep.Changes, "change "+o.String())
		}
	}
	w.rep.Sentence = "dry run: nothing was changed; the nodes were not asked, for which a pod runs on each"
	return nil
}

// preflight has every node check itself. Nodes whose kernel is not supported, and those that are to be left out, get a label.
func (w *work) preflight(ds, live object) error {
	own := map[string]bool{}
	if live != nil {
		pods, err := w.pods()
		if err != nil {
			return err
		}
		for name := range pods {
			own[name] = true
		}
	}
	var ask []string
	for _, n := range w.rep.Cluster.Nodes {
		// A node that serves needs no look: a second run writes nothing.
		if !slices.Contains(w.LeaveOut, n.Name) && !(own[n.Name] && n.ConnectTime.Proven) {
			ask = append(ask, n.Name)
		}
	}
	if len(ask) == 0 {
		w.say("preflight", "every node serves already: none was asked")
		return w.leaveOut(nil)
	}
	results, err := w.onNodes(w.ctx, ds, ask, preflightCommands, w.Patience)
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "KERNEL", "RESULT", "WHY"}}
	failed, unsupported := 0, map[string]bool{}
	for _, r := range results {
		c := judge(r, own[r.node])
		w.rep.Checks = append(w.rep.Checks, c)
		rows = append(rows, []string{c.Node, w.node(c.Node).Kernel, string(c.Grade), c.Reason})
		switch c.Grade {
		case diagnose.Fail:
			failed++
		case diagnose.Skip:
			unsupported[c.Node] = true
		}
	}
	grade := diagnose.OK
	if failed > 0 {
		grade = diagnose.Fail
	}
	w.tell(Step{Step: "preflight", Result: grade, Text: fmt.Sprintf("%d of %d nodes can run firsthop", len(results)-failed-len(unsupported), len(results)), Rows: rows})
	if failed > 0 {
		w.rep.Next = []string{"repair the nodes that fail, or leave them out by --leave-out NODE, and run it again"}
		code := bootstrap.ExitInternal
		for _, c := range w.rep.Checks {
			if c.Grade == diagnose.Fail {
				code = c.Exit
				break
			}
		}
		return w.stop(code, "%d nodes can't run firsthop, and nothing was changed", failed)
	}
	return w.leaveOut(unsupported)
}

func (w *work) node(name string) *Node {
	for i := range w.rep.Cluster.Nodes {
		if n := &w.rep.Cluster.Nodes[i]; n.Name == name {
			return n
		}
	}
	return &Node{Name: name}
}

// leaveOut labels the nodes that get no pod.
func (w *work) leaveOut(unsupported map[string]bool) error {
	for i := range w.rep.Cluster.Nodes {
		n := &w.rep.Cluster.Nodes[i]
		switch {
		case slices.Contains(w.LeaveOut, n.Name):
			if err := w.relabel(n, Waits); err != nil {
				return err
			}
		case unsupported[n.Name]:
			if err := w.relabel(n, Unsupported); err != nil {
				return err
			}
		case n.Rollout == Unsupported: // it is supported now: it was asked
			if err := w.relabel(n, Waits); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *work) relabel(n *Node, value string) error {
	if n.Rollout != value {
		what := fmt.Sprintf("label node %s: %s=%s", n.Name, RolloutLabel, value)
		if value == "" {
			what = fmt.Sprintf("remove label %s from node %s", RolloutLabel, n.Name)
		}
		w.rep.Changes = append(w.rep.Changes, what)
	}
	return w.label(w.ctx, n, value)
}

// record notes what is there, before anything of it is written.
func (w *work) record(objects []object) error {
	r, err := w.readRecord(w.ctx)
	if err != nil {
		return err
	}
	if r == nil {
		r = &record{Former: map[string]object{}}
	}
	r.Version, r.Values = w.Version, w.Values
	r.LeftOut = slices.Compact(slices.Sorted(slices.Values(w.LeaveOut)))
	for _, o := range objects {
		if _, noted := r.Former[o.String()]; noted {
			continue
		}
		now, err := w.read(w.ctx, o)
		if err != nil {
			return err
		}
		if now != nil && now.managed() {
			now = nil // a record was here, and was lost
		}
		r.Former[o.String()] = now.content()
	}
	o, err := recordObject(*r)
	if err != nil {
		return err
	}
	return w.write(o)
}

// write applies an object and notes whether that changed it. One that would stay as it is, is not written: Kubernetes would
// note a new time for our fields once another manager has come, as kube-controller-manager does for a policy's status.
func (w *work) write(o object) error {
	before, err := w.read(w.ctx, o)
	if err != nil {
		return err
	}
	if before != nil && before.managed() {
		if planned, err := w.apply(w.ctx, o, w.Force, true); err == nil && !changed(before, planned) {
			return nil
		}
	}
	after, err := w.apply(w.ctx, o, w.Force, false)
	if err != nil {
		if apierrors.IsConflict(err) {
			return w.refuse([]string{conflict(err)})
		}
		return err
	}
	w.wrote(o, before, after)
	return nil
}

// changed compares what somebody writes. The version also changes when a controller writes the status meanwhile.
func changed(before, after object) bool { return !reflect.DeepEqual(before.content(), after.content()) }

func (w *work) wrote(o, before, after object) {
	switch {
	case before == nil:
		w.rep.Changes = append(w.rep.Changes, "created "+o.String())
	case changed(before, after):
		w.rep.Changes = append(w.rep.Changes, "changed "+o.String())
	default:
		return
	}
	w.say("apply", "%s", w.rep.Changes[len(w.rep.Changes)-1])
}

// sum is the end of an install: what is served, what is not, and what comes next.
func (w *work) sum() error {
	f, err := w.look(w.ctx)
	if err != nil {
		return err
	}
	w.rep.Cluster = f
	served, out := 0, 0
	for _, n := range f.Nodes {
		switch {
		case n.Rollout != "":
			out++
		case n.ConnectTime.Proven:
			served++
		}
	}
	w.rep.Sentence = fmt.Sprintf("%d of %d nodes serve every Service at connect time, and have proven it", served, len(f.Nodes))
	if out > 0 {
		w.rep.Result = diagnose.Warn
		w.rep.Sentence += fmt.Sprintf("; %d are left out", out)
	}
	w.rep.Next = next(f)
	return nil
}

// needsKubeProxy is said wherever firsthop is installed: connections are one fact, packets from outside another.
const needsKubeProxy = "packets from outside of the cluster are not served by firsthop: they need kube-proxy"

// next says what is not served, and what comes next.
func next(f *Facts) []string {
	out := []string{needsKubeProxy}
	if n := len(f.FromOutside); n > 0 {
		out = append(out, fmt.Sprintf("%d Services have node ports, load balancers or external IPs, which need kube-proxy: %s", n, few(f.FromOutside)))
	}
	return append(out, "firsthop cluster status     what each node says of itself", "firsthop cluster uninstall  undoes all of it")
}

// few are the first of a list.
func few(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", len(list)-most)
}

// isOnDelete reports whether a DaemonSet is in the middle of an upgrade.
func isOnDelete(set *appsv1.DaemonSet) bool {
	return set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType
}
