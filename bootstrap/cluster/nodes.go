package cluster

import (
	"context"
	"fmt"
	"slices"
)

// RolloutLabel keeps a node out of the DaemonSet, whose affinity knows its two values.
const RolloutLabel = "firsthop.io/rollout"

// The values of RolloutLabel.
const (
	Unsupported = "unsupported" // the node's kernel is not supported: kube-proxy goes on there
	Waits       = "wait"        // it is not yet its turn, or it was left out
)

// label sets the label of a node, "": it goes. A node that has it so is not written.
func (c *client) label(ctx context.Context, n *Node, value string) error {
	if n.Rollout == value {
		return nil
	}
	var to any
	if value != "" {
		to = value
	}
	patch := map[string]any{"metadata": map[string]any{"labels": map[string]any{RolloutLabel: to}}}
	if err := c.merge(ctx, "/api/v1/nodes/"+n.Name, patch); err != nil {
		return fmt.Errorf("label node %s: %w", n.Name, err)
	}
	n.Rollout = value
	return nil
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
