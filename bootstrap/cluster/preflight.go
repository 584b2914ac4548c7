package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// The commands that a node's pod runs before an install.
var preflightCommands = map[string][]string{"check": {"check", "-o", "json"}, "status": {"status", "-o", "json"}}

// Checked is what a node's own check says.
type Checked struct {
	Node   string             `json:"node"`
	Grade  diagnose.Grade     `json:"grade"` // skip: the node is left out
	Reason string             `json:"reason"`
	Exit   bootstrap.ExitCode `json:"exit_code"` // of firsthop check there
}

// judge makes one sentence of what the commands on a node said. own: the node runs a pod of the DaemonSet already.
func judge(r onNode, own bool) Checked {
	c := Checked{Node: r.node, Grade: diagnose.Fail, Exit: bootstrap.ExitInternal}
	if r.err != nil {
		c.Reason = r.err.Error()
		return c
	}
	var check struct {
		Findings []struct {
			Check    string         `json:"check"`
			Grade    diagnose.Grade `json:"grade"`
			Sentence string         `json:"sentence"`
		} `json:"findings"`
		Error string `json:"error"`
	}
	var status struct {
		Runtime *json.RawMessage `json:"runtime"`
	}
	readable := json.Unmarshal([]byte(r.output["check"]), &check) == nil
	_ = json.Unmarshal([]byte(r.output["status"]), &status) // without it, the runtime there says no to the pod's
	c.Exit = bootstrap.ExitCode(r.exit["check"])
	worst := func(grade diagnose.Grade) (out []string) {
		for _, f := range check.Findings {
			if f.Grade == grade {
				out = append(out, f.Check+": "+f.Sentence)
			}
		}
		return out
	}
	switch {
	case c.Exit == bootstrap.ExitKernel:
		c.Grade, c.Reason = diagnose.Skip, "not supported, left out: "+strings.Join(worst(diagnose.Fail), "; ")
	case c.Exit != bootstrap.ExitOK && !readable:
		c.Reason = fmt.Sprintf("firsthop check ended with exit code %d: %s", c.Exit, lastLine(r.output["check"]))
	case c.Exit != bootstrap.ExitOK:
		c.Reason = strings.Join(append(worst(diagnose.Fail), check.Error), "; ")
		c.Reason = strings.TrimSuffix(c.Reason, "; ")
	case status.Runtime != nil && !own:
		c.Exit = bootstrap.ExitInternal
		c.Reason = "a runtime of the host's own serves it: systemctl disable --now firsthop.service there, or --leave-out " + r.node
	default:
		c.Grade, c.Reason = diagnose.OK, "ready"
		if warnings := worst(diagnose.Warn); len(warnings) > 0 {
			c.Grade, c.Reason = diagnose.Warn, strings.Join(warnings, "; ")
		}
	}
	return c
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
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
