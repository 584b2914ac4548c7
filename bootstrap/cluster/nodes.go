package cluster

import (
	"context"
	"fmt"
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
