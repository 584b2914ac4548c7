package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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

// did notes a change, in a step of its own.
func (w *work) did(step, format string, args ...any) {
	w.rep.Changes = append(w.rep.Changes, fmt.Sprintf(format, args...))
	w.say(step, format, args...)
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

func (w *work) node(name string) *Node {
	for i := range w.rep.Cluster.Nodes {
		if n := &w.rep.Cluster.Nodes[i]; n.Name == name {
			return n
		}
	}
	return &Node{Name: name}
}

// few are the first of a list.
func few(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", len(list)-most)
}
