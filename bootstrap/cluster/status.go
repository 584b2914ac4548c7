package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// Status is how a cluster is served. JSON is API.
type Status struct {
	Result    diagnose.Grade     `json:"result"`
	Sentence  string             `json:"sentence"`
	ExitCode  bootstrap.ExitCode `json:"exit_code"`
	Installed bool               `json:"installed"` // the DaemonSet is there
	Version   string             `json:"installed_by,omitempty"`
	Cluster   *Facts             `json:"cluster"`
	Nodes     []NodeStatus       `json:"nodes"`
	Oddities  []string           `json:"oddities"`
}

// NodeStatus is how a node is served.
type NodeStatus struct {
	Node
	Image  string         `json:"image,omitempty"`
	Grade  diagnose.Grade `json:"grade"`
	Reason string         `json:"reason"`
}

// ReadStatus looks at a cluster and changes nothing.
func ReadStatus(ctx context.Context, cfg Config) (*Status, error) {
	w, err := newWork(ctx, cfg)
	if err != nil {
		return nil, err
	}
	missing, err := w.missing(ctx, nil)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("this user lacks rights: %s", strings.Join(missing, "; "))
	}
	f, err := w.look(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{Result: diagnose.OK, Cluster: f, Nodes: []NodeStatus{}, Oddities: []string{}}
	var sets struct {
		Items []object `json:"items"`
	}
	if err := w.list(ctx, "/apis/apps/v1/daemonsets", nameLabel+"="+ourName, &sets); err != nil {
		return nil, err
	}
	st.Installed = len(sets.Items) > 0
	r, err := w.readRecord(ctx)
	if err != nil {
		return nil, err
	}
	if r != nil {
		st.Version = r.Version
	}
	pods, err := w.pods()
	if err != nil {
		return nil, err
	}
	for _, n := range f.Nodes {
		st.Nodes = append(st.Nodes, statusOf(n, pods[n.Name], st.Installed, r != nil && slices.Contains(r.LeftOut, n.Name)))
	}
	st.judge()
	st.oddities(sets.Items, r)
	return st, nil
}

func statusOf(n Node, p *corev1.Pod, installed, leftOut bool) NodeStatus {
	s := NodeStatus{Node: n, Grade: diagnose.OK, Reason: n.ConnectTime.Message}
	if p != nil {
		for _, c := range p.Spec.InitContainers {
			s.Image = c.Image
		}
	}
	switch {
	case n.Rollout == Unsupported:
		s.Grade, s.Reason = diagnose.Skip, "left out: its kernel is not supported"
	case leftOut:
		s.Grade, s.Reason = diagnose.Skip, "left out; firsthop cluster install --include "+n.Name+" brings it in"
	case n.Rollout != "":
		s.Grade, s.Reason = diagnose.Skip, "not yet its turn ("+RolloutLabel+"="+n.Rollout+"): firsthop cluster install continues"
	case n.ConnectTime.Proven && p == nil && installed:
		s.Grade, s.Reason = diagnose.Warn, "served, but there is no pod of the DaemonSet: nothing follows changes"
	case n.ConnectTime.Proven && p != nil && !isReady(p):
		s.Grade, s.Reason = diagnose.Warn, "served, but its pod is not ready: "+stateOfPod(p)
	case n.ConnectTime.Proven:
	case !installed && p == nil && n.Mode == "":
		s.Grade, s.Reason = diagnose.Skip, "firsthop is not there"
	default:
		s.Grade = diagnose.Fail
		if p != nil {
			if why, _ := waitingFor(p); why != "" {
				s.Reason = "its pod waits: " + why
			}
		}
	}
	return s
}

// judge makes the verdict.
func (s *Status) judge() {
	count := map[diagnose.Grade]int{}
	served := 0
	for _, n := range s.Nodes {
		count[n.Grade]++
		if n.ConnectTime.Proven {
			served++
		}
	}
	s.Sentence = fmt.Sprintf("%d of %d nodes serve every Service at connect time, and have proven it", served, len(s.Nodes))
	switch {
	case !s.Installed && served == 0 && count[diagnose.Fail] == 0:
		s.Result, s.Sentence = diagnose.Skip, "firsthop is not installed in this cluster"
	case count[diagnose.Fail] > 0:
		s.Result, s.ExitCode = diagnose.Fail, bootstrap.ExitProof
	case count[diagnose.Warn]+count[diagnose.Skip] > 0:
		s.Result = diagnose.Warn
	}
}

// oddities are about the cluster as a whole.
func (s *Status) oddities(sets []object, r *record) {
	odd := func(format string, args ...any) { s.Oddities = append(s.Oddities, fmt.Sprintf(format, args...)) }
	if s.Installed {
		odd("%s", needsKubeProxy)
	}
	without := []string{}
	for _, n := range s.Nodes {
		if !n.Node.KubeProxy {
			without = append(without, n.Name)
		}
	}
	if len(s.Cluster.FromOutside) > 0 {
		odd("%d Services need kube-proxy for node ports, load balancers or external IPs: %s", len(s.Cluster.FromOutside), few(s.Cluster.FromOutside))
		if len(without) > 0 && (s.Cluster.KubeProxy == "none" || strings.HasPrefix(s.Cluster.KubeProxy, "DaemonSet")) {
			odd("no kube-proxy runs on %s: packets from outside are lost there", few(without))
		}
	}
	for _, n := range s.Nodes {
		if _, not, some := strings.Cut(n.APIServers, ", not "); some {
			odd("node %s sees %s: API server %s is not ready there", n.Name, n.APIServers[:strings.Index(n.APIServers, ", not ")], not)
		}
	}
	if s.Cluster.Replaces != "" && s.Installed {
		odd("%s serves Services too: two such dataplanes take connections from each other", s.Cluster.Replaces)
	}
	if s.Installed && r == nil {
		odd("there is no ConfigMap %s/%s: firsthop was installed by other means, and cluster uninstall removes what has its names", Namespace, RecordName)
	}
	for _, o := range sets {
		if set, err := typed(o); err == nil && isOnDelete(set) {
			odd("an upgrade was interrupted: firsthop cluster install completes it")
		}
	}
}
