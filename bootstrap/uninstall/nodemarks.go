package uninstall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/instance"
)

// The label and the condition that the runtime has put on the Node object: they
// would say for good that firsthop serves this node.

// marksTimeout is for reading or removing them.
const marksTimeout = 3 * time.Second

// askAboutNode says how this node's kubelet asks, at which servers.
func askAboutNode(p mounts.Places, servers []netip.AddrPort) query.Config {
	id, findings := sources.Decide(sources.Files(p.HostRoot), nil)
	cfg := query.Config{Trust: id.Trust}
	for _, a := range servers {
		cfg.Candidates = append(cfg.Candidates, apiserver.Endpoint{Addr: a})
	}
	for _, f := range findings {
		cfg.Credentials = append(cfg.Credentials, f.Credentials...)
		cfg.Candidates = append(cfg.Candidates, f.Endpoints...)
	}
	return cfg
}

// ranHere reports whether a runtime was at work since the last boot.
func (u *uninstaller) ranHere() bool {
	return isThere(filepath.Join(u.RunDir, instance.RuntimeLockName)) ||
		slices.ContainsFunc(u.vips, func(s diagnose.TableService) bool { return s.Owner == natinit.OwnerRuntime })
}

// withMarks does something with what the Node says of firsthop, and says what is
// left where that fails. An instance of its own says nothing of its node.
func (u *uninstaller) withMarks(ctx context.Context, do func(context.Context, query.Config) (query.Marks, error)) {
	if u.Own() || u.NoHost != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, marksTimeout)
	defer cancel()
	m, err := do(ctx, askAboutNode(u.Places, u.servers))
	switch {
	case err == nil:
		u.removals = append(u.removals, marksRemoved(m)...)
	case u.ran:
		name := m.Node
		if name == "" {
			name = "NAME"
		}
		u.Log.Warn("the label and the condition on the Node object stay", "err", fmt.Sprint(err), "fix", strings.Join(query.RemoveMarksCommands(name), "; "))
	case !errors.Is(err, query.ErrNoNodeIdentity):
		u.Log.Debug("could not look at the Node object", "err", err)
	}
}

func marksRemoved(m query.Marks) (out []Removal) {
	if m.Label {
		out = append(out, Removal{Kind: "label", Target: query.NodeLabel + " of Node " + m.Node})
	}
	if m.Condition {
		out = append(out, Removal{Kind: "condition", Target: query.NodeCondition + " of Node " + m.Node})
	}
	return out
}
