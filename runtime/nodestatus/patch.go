package nodestatus

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxMessage is how many bytes of a message are written: a Node is sent to many.
const maxMessage = 1024

// read takes from a Node what a Reporter writes.
func read(node *corev1.Node) *said {
	s := &said{report: Report{Mode: Mode(node.Labels[Label])}}
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == ConditionType {
			s.report.Ready, s.report.Reason, s.report.Message = c.Status, c.Reason, c.Message
			s.changed, s.heartbeat = c.LastTransitionTime.Time, c.LastHeartbeatTime.Time
		}
	}
	return s
}

// normal is a report as an API server keeps it.
func (r Report) normal() Report {
	if r.Message = strings.ToValidUTF8(r.Message, "?"); len(r.Message) > maxMessage {
		r.Message = strings.ToValidUTF8(r.Message[:maxMessage], "") + "…"
	}
	return r
}

// patch is a strategic merge patch: of the lists in a Node, conditions are merged by their type.
func patch(want Report, now *said, at time.Time) ([]byte, error) {
	changed := now.changed
	if changed.IsZero() || now.report.Ready != want.Ready {
		changed = at
	}
	p := map[string]any{
		"metadata": map[string]any{"labels": map[string]string{Label: string(want.Mode)}},
		"status": map[string]any{
			"conditions": []corev1.NodeCondition{{
				Type: ConditionType, Status: want.Ready, Reason: want.Reason, Message: want.Message,
				LastHeartbeatTime: metav1.NewTime(at), LastTransitionTime: metav1.NewTime(changed),
			}},
		},
	}
	body, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write a patch: %w", err)
	}
	return body, nil
}

// get and patch ask for the one Node. Errors keep their cause: what the API server says tells how long to wait.
func (r *Reporter) get(ctx context.Context) (*said, error) {
	var node corev1.Node
	if err := r.cfg.Client.Get().Resource("nodes").Name(r.cfg.NodeName).Do(ctx).Into(&node); err != nil {
		return nil, err
	}
	return read(&node), nil
}

func (r *Reporter) patch(ctx context.Context, body []byte) (*said, error) {
	var node corev1.Node
	err := r.cfg.Client.Patch(types.StrategicMergePatchType).Resource("nodes").Name(r.cfg.NodeName).SubResource("status").
		Body(body).Do(ctx).Into(&node)
	if err != nil {
		return nil, err
	}
	return read(&node), nil
}
