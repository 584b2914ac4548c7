package query

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// What the runtime says on the Node object, and an uninstall takes away.
const (
	// NodeLabel is the key of the label that says how the node's Services are served.
	NodeLabel = "firsthop.io/proxy"
	// NodeCondition is the type of the condition that says whether they are.
	NodeCondition = "FirsthopReady"
	// APIServersMark is in the condition's message before how the API servers look from the node.
	APIServersMark = "; API servers: "
)

// Marks are what a Node object says of firsthop.
type Marks struct {
	Node      string // its name
	Label     bool   // it has NodeLabel
	Condition bool   // it has NodeCondition
}

// Any reports whether there is something to be taken away.
func (m Marks) Any() bool { return m.Label || m.Condition }

// ErrNoNodeIdentity says that no credential of this node is that of its kubelet,
// which alone may read and change its own Node.
var ErrNoNodeIdentity = errors.New("no credentials of this node's kubelet can be used")

// ReadMarks reads, as the node's kubelet, what its Node object says of firsthop.
func ReadMarks(ctx context.Context, cfg Config) (Marks, error) {
	var m Marks
	err := cfg.asKubelet(ctx, func(ctx context.Context, s *session, name string) (err error) {
		m, err = s.marks(ctx, name)
		return err
	})
	return m, err
}

// RemoveMarks takes away, as the node's kubelet, what its Node object says of
// firsthop, and returns what it was.
func RemoveMarks(ctx context.Context, cfg Config) (Marks, error) {
	var m Marks
	err := cfg.asKubelet(ctx, func(ctx context.Context, s *session, name string) (err error) {
		if m, err = s.marks(ctx, name); err != nil || !m.Any() {
			return err
		}
		return s.removeMarks(ctx, name)
	})
	return m, err
}

// asKubelet does something with the first server that does it.
func (c Config) asKubelet(ctx context.Context, do func(ctx context.Context, s *session, name string) error) error {
	var failed error
	for _, cred := range c.Credentials {
		name := cred.NodeName()
		if name == "" || c.trust(cred) == nil {
			continue
		}
		for i, at := range c.Candidates {
			if !at.Resolved() {
				continue
			}
			s, err := newSession(c, cred, at)
			if err == nil {
				one, cancel := Share(ctx, 1/float64(len(c.Candidates)-i))
				err = do(one, s, name)
				cancel()
				s.close()
			}
			if err == nil {
				return nil
			}
			failed = fmt.Errorf("%s, with %s: %w", at, cred.Path, err)
		}
	}
	if failed == nil {
		return ErrNoNodeIdentity
	}
	return failed
}

func nodePath(name string) string { return "/api/v1/nodes/" + url.PathEscape(name) }

func (s *session) marks(ctx context.Context, name string) (Marks, error) {
	m := Marks{Node: name}
	node, err := get[corev1.Node](ctx, s, s.client, nodePath(name))
	if err != nil {
		return m, fmt.Errorf("read Node %s: %w", name, err)
	}
	_, m.Label = node.Labels[NodeLabel]
	m.Condition = slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == NodeCondition })
	return m, nil
}

// marksPatch is a strategic merge patch of the subresource status, which may
// change labels too (see runtime/nodestatus).
const marksPatch = `{"metadata":{"labels":{"` + NodeLabel + `":null}},"status":{"conditions":[{"type":"` + NodeCondition + `","$patch":"delete"}]}}`

func (s *session) removeMarks(ctx context.Context, name string) error {
	err := s.request(ctx, s.client, http.MethodPatch, nodePath(name)+"/status", []byte(marksPatch), &corev1.Node{})
	if err != nil {
		return fmt.Errorf("change Node %s: %w", name, err)
	}
	return nil
}

// RemoveMarksCommands are for whom RemoveMarks cannot help.
func RemoveMarksCommands(name string) []string {
	return []string{
		"kubectl label node " + name + " " + NodeLabel + "-",
		"kubectl patch node " + name + ` --subresource=status -p '{"status":{"conditions":[{"type":"` + NodeCondition + `","$patch":"delete"}]}}'`,
	}
}
