package kubeproxy

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/hostproc"
	"github.com/firsthop/firsthop/natinit/nodeconf"
)

// Process is one that is kube-proxy, or has it inside.
type Process struct {
	PID      int    `json:"pid"`      // in the PID namespace of Config.Proc
	Name     string `json:"name"`     // the kernel's name of it: at most 15 bytes
	Embedded bool   `json:"embedded"` // kube-proxy is a part of it, or not: rules tell
}

func (p Process) String() string { return fmt.Sprintf("%s, pid %d", p.Name, p.PID) }

func anyProper(processes []Process) bool {
	return slices.ContainsFunc(processes, func(p Process) bool { return !p.Embedded })
}

func joinProcesses(processes []Process) string {
	if len(processes) == 0 {
		return "process not seen"
	}
	var s []string
	for _, p := range processes {
		s = append(s, p.String())
	}
	return strings.Join(s, "; ")
}

// Units are the services whose main process is kube-proxy, or has it inside (true).
var Units = map[string]bool{
	"kube-proxy":                    false,
	"snap.kube-proxy.daemon":        false, // Charmed Kubernetes
	"snap.k8s.kube-proxy":           false, // Canonical Kubernetes
	"k3s":                           true,
	"k3s-server":                    true,
	"k3s-agent":                     true,
	"snap.microk8s.daemon-kubelite": true,
}

// processLook is what the list of processes gave.
type processLook struct {
	processes []Process
	evidence  Evidence
}

// lookForProcesses looks for kube-proxy's units and pods. A process of another unit or pod is not kube-proxy, whatever
// it calls itself: every user can choose a name.
func lookForProcesses(ctx context.Context, root, proc, own string) processLook {
	look := processLook{evidence: Evidence{Source: SourceProcess, Found: Unknown}}
	host := nodeconf.Trusted(root)
	k3s := nodeconf.RancherCommands(host, "k3s", nodeconf.Commands(host))
	var names, pods []string
	for unit := range Units {
		names = append(names, unit)
	}
	for _, r := range k3s { // an installer may give it another name
		if r.Service != "" && !slices.Contains(names, r.Service) {
			names = append(names, r.Service)
		}
	}
	for _, p := range podsOf(root) {
		pods = append(pods, p.uid)
	}
	procs := hostproc.Config{Root: root, Proc: proc}
	found, err := procs.UnitsAndPods(names, pods)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		look.evidence.Detail = err.Error()
		return look
	}
	var elsewhere []string
	for _, q := range found {
		p := Process{PID: q.PID, Name: q.Name, Embedded: Units[q.Unit] || slices.ContainsFunc(k3s, func(r nodeconf.Rancher) bool { return r.Service != "" && r.Service == q.Unit })}
		if q.Pod != "" && q.Name == "pause" || p.Embedded && withoutKubeProxy(k3s, q.Unit, procs.Args(q)) {
			continue // the pod's own first process, or k3s that is told to run without
		}
		if ns.Differ(filepath.Join(proc, strconv.Itoa(q.PID), "ns/net"), own) {
			elsewhere = append(elsewhere, p.String())
			continue
		}
		look.processes = append(look.processes, p)
	}
	look.evidence.Found, look.evidence.Detail = judgeProcesses(look.processes, elsewhere, procs.Host(), proc)
	if look.evidence.Found == No {
		look.judgeNames(procs, proc, own)
	}
	return look
}

// judgeNames takes back a no where a process of root's in this network namespace calls itself kube-proxy: somebody may
// have started it by hand.
func (l *processLook) judgeNames(procs hostproc.Config, proc string, own string) {
	named, err := procs.Named("kube-proxy")
	if err != nil {
		return
	}
	for _, q := range named {
		if same, _ := ns.Same(filepath.Join(proc, strconv.Itoa(q.PID), "ns/net"), own); same {
			l.evidence.Found = Unknown
			l.evidence.Detail = fmt.Sprintf("%s, pid %d, was started by no unit or pod of kube-proxy", q.Name, q.PID)
			return
		}
	}
}

func judgeProcesses(here []Process, elsewhere []string, node bool, proc string) (Answer, string) {
	if len(here) > 0 {
		detail := joinProcesses(here)
		if !anyProper(here) {
			detail += " (has kube-proxy inside, unless it is switched off)"
		}
		return Yes, detail
	}
	if !node {
		return Unknown, proc + " shows only the processes of a container: run with hostPID, or give the host's /proc"
	}
	if len(elsewhere) > 0 {
		return No, "only in other network namespaces: " + strings.Join(elsewhere, "; ")
	}
	return No, "none"
}

// withoutKubeProxy reads the flag of k3s: on the command line of the process, of its service, in its configuration. k3s
// hides its flags from the process list.
func withoutKubeProxy(k3s []nodeconf.Rancher, unit string, args []string) bool {
	if nodeconf.Flags(args).Bool("disable-kube-proxy") {
		return true
	}
	return slices.ContainsFunc(k3s, func(r nodeconf.Rancher) bool {
		return (r.Service == "" || r.Service == unit) && r.Flags.Bool("disable-kube-proxy")
	})
}
