package diagnose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
	"github.com/firsthop/firsthop/natinit/proof"
	"github.com/firsthop/firsthop/units"
)

// The checks of what the dataplane stands on, and of what keeps it going.

func (d *doctor) kernel(context.Context) Finding {
	if d.kernErr != nil {
		return unseen("the kernel's features", d.kernErr)
	}
	if err := d.kern.Err(); err != nil {
		remedy := "firsthop check --verbose, which lists every feature; leave the node to kube-proxy, or update its kernel"
		if !errors.Is(err, kernel.ErrUnsupported) {
			remedy = privileges.AsRoot
		}
		return fail(remedy, "%s", err).because(d.kern.Reasons...)
	}
	return ok("%s", d.kern.Sentence).because(d.kern.Degradations...)
}

func (d *doctor) bpffs(context.Context) Finding {
	b := d.mount
	seen := bpffsEvidence(b)
	switch err := b.Err(); {
	case errors.Is(err, mounts.ErrAbsent):
		return fail(runInit, "%s", err).because(seen...)
	case len(b.Stack) > 1 && err != nil:
		return fail("umount "+b.HostPath+", which takes the topmost off", "%s", err).because(seen...)
	case err != nil:
		return fail("firsthop check, which says how to repair it", "%s", err).because(seen...)
	case b.State == mounts.BPFFSStacked:
		return warn("look what the lower one holds, and use one of them only", "two BPF file systems are mounted at %s, one over the other: what is pinned in the lower one is out of sight", b.HostPath).because(seen...)
	case len(b.Warnings) > 0:
		return warn(fmt.Sprintf("chown root %[1]s && chmod 0700 %[1]s", b.HostPath), "%s", b.Warnings[0]).because(seen...)
	}
	return ok("%s: %s, once", b.HostPath, b.State).because(seen...)
}

func (d *doctor) trueRoot(context.Context) Finding {
	g := d.cgroup
	at := fmt.Sprintf("%s (id %d)", g.HostPath, g.ID)
	switch {
	case g.Err() != nil:
		return fail(runInit, "%s", g.Err())
	case g.IsTrueRoot && g.Sure:
		return ok("%s is the true root: every process is in it or below", at).because(g.How)
	case d.cfg.Dirs.Cgroup != "":
		return ok("%s was given by --cgroup: only processes in it and below are served", at)
	case g.IsTrueRoot:
		return warn("give the container hostPID: true, or run on the host", "whether %s is the true root can't be told for sure", at).because(append(g.Warnings, g.How)...)
	}
	return fail("unmount what is over the true root, or give it by --cgroup; then "+runInit, "%s is not the true root: processes outside of it are not served", at).because(append(g.Warnings, g.How)...)
}

func (d *doctor) changes(context.Context) Finding {
	entries, settings := 0, []string{}
	for _, dir := range []string{d.RunDir, d.StateDir} {
		l, err := instance.OpenJournal(dir, false)
		if errors.Is(err, instance.ErrDamagedJournal) {
			return fail(runInit+"; it sets the damaged file aside and keeps what can be recovered", "what was changed on the host is not known as a whole: %s; %d entries can be recovered", err, len(l.Entries()))
		}
		if err != nil {
			return fail("make it readable for root", "what was changed on the host is not known: %s", err)
		}
		if l.Has(instance.KindPending, d.node.pins().Dir) {
			return fail(runInit, "what is attached was never proven: the run that attached it was killed")
		}
		entries += len(l.Entries())
		settings = append(settings, bootstrap.Texts(settingsIn(l, d.HostRoot))...)
	}
	f := ok("%d changes of the host are listed, to be undone by an uninstall", entries)
	f.Details = settings
	return f
}

func (d *doctor) lastInit(context.Context) Finding {
	switch {
	case d.lastErr != nil:
		return warn(runInit, "%s", d.lastErr)
	case d.last == nil:
		return warn(runInit, "no init is on record since the last boot, so that nothing is known to be proven")
	case d.last.Failure() != nil:
		return warn(runInit, "the last init, %s, failed at %s: %s", discover.Ago(time.Since(d.last.Time)), d.last.Failure().Step, d.last.Failure().Reason)
	case !d.last.Proven():
		return warn(runInit, "the last init, %s, proved nothing", discover.Ago(time.Since(d.last.Time)))
	}
	return ok("proven %s: %s", discover.Ago(time.Since(d.last.Proofs[0].Time)), proof.Describe(d.last.Proofs))
}

const startRuntime = "systemctl restart firsthop; where it is a pod, kubectl -n kube-system describe daemonset firsthop"

func (d *doctor) runtime(context.Context) Finding {
	r := d.cfg.Runtime.Runtime
	if d.cfg.Runtime.Silent != nil {
		return fail(startRuntime, "a runtime holds its socket, but doesn't answer: %s", d.cfg.Runtime.Silent)
	}
	if r == nil {
		return d.noRuntime()
	}
	seen := []string{d.cfg.Runtime.Sentence()}
	switch {
	case len(r.Troubles) > 0:
		return warn("firsthop discover, which says which API servers answer; then the runtime's log", "%s", r.Troubles[0]).because(append(seen, r.Troubles[1:]...)...)
	case !r.Synced:
		return warn("the runtime's log says what it waits for", "the runtime has not heard all of the API yet: the table is served as it was found").because(seen...)
	case len(r.Out) > 0:
		return warn("firsthop nat, which lists them; a table that is full grows while the runtime runs, up to the memory that it may use", "%d Service ports are not in the table as they should be", len(r.Out)).because(append(seen, Few(r.Out))...)
	}
	if len(r.Claims) > 0 {
		return warn("take the address out of the Service's external IPs, or ask its owner; the API servers' addresses are never served for another Service",
			"Services claim addresses of API servers: they are not served there").because(append(seen, Few(r.Claims))...)
	}
	if len(r.Problems) > 0 {
		seen = append(seen, fmt.Sprintf("not served as Services ask: %s", Few(r.Problems)))
	}
	return ok("alive and in step with the API").because(seen...)
}

// noRuntime judges an instance whose runtime has no socket.
func (d *doctor) noRuntime() Finding {
	if err := instance.RuntimeAbsent(d.RunDir); err != nil {
		return warn(startRuntime, "a runtime holds its lock, but has no socket: it starts or ends now, or its socket was removed").because(err.Error())
	}
	of := 0
	if d.state != nil {
		for _, index := range d.state.Indexes() {
			if nat.RuntimeIndexes.Contains(index) {
				of++
			}
		}
	}
	if of > 0 {
		return warn(startRuntime, "no runtime runs here: %d Services are served as they were when it ended, and changes are not followed", of)
	}
	return ok("no runtime runs here, and none has: the API service is all that is served")
}

func (d *doctor) cache(context.Context) Finding {
	known, err := apiserver.Load(d.StateDir)
	path := apiserver.CachePath(d.StateDir)
	switch {
	case errors.Is(err, apiserver.ErrNoCache):
		return warn(runInit+" (without --persist off)", "%s is not there: after a reboot no API server is known before the kubelet's files are read", path)
	case err != nil:
		return fail("rm "+path+" && "+runInit, "%s", err)
	}
	age := fmt.Sprintf("saved %s by %s: %s", discover.Ago(known.Age(time.Now())), known.Source, count(len(known.Endpoints), "API server"))
	if d.cfg.Runtime.Runtime != nil && known.Age(time.Now()) > 2*apiserver.CacheRefresh {
		return warn("the runtime's log says why it can't save them", "the saved addresses of the API servers are old, though a runtime runs").because(age)
	}
	if inUse := d.apiBackends(); len(inUse) > 0 {
		named := func(e apiserver.KnownEndpoint) bool { return !e.Resolved() || slices.Contains(inUse, e.Addr.String()) }
		if !slices.ContainsFunc(known.Endpoints, named) {
			return warn(runInit, "none of the saved API servers is in use").because(age, "in use: "+strings.Join(inUse, ", "))
		}
	}
	return ok("%s", age)
}

func (d *doctor) boot(ctx context.Context) Finding {
	if d.cfg.Own() {
		return ok("an instance with directories of its own is not started at boot")
	}
	if d.NoHost != nil {
		return warn("give the container hostPID: true, or mount the host's root and give it by --root", "%s", d.NoHost)
	}
	rep, err := units.PlanInstall(ctx, units.Config{Root: d.HostRoot, StateDir: d.OnHost(d.StateDir), BinarySource: d.cfg.Binary, Args: bootstrap.InstalledArgs(d.HostRoot)})
	switch {
	case err != nil:
		return warn("firsthop units", "what starts at boot can't be told: %s", err)
	case len(rep.Actions) > 0:
		return warn("firsthop install", "what starts at boot is not what this firsthop would install").because(bootstrap.DescribeActions(rep.Actions)...).because(rep.Warnings...)
	case !rep.Survives:
		return warn("firsthop units, which says what is missing", "%s", rep.Statement).because(rep.Warnings...)
	}
	return ok("%s", rep.Statement).because(rep.Warnings...)
}

func (d *doctor) kubeProxy(ctx context.Context) Finding {
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: d.HostRoot, Proc: d.Proc})
	if err != nil {
		return warn("run it as root", "whether kube-proxy is here could not be told: %s", err)
	}
	var seen []string
	for _, e := range p.Evidence {
		if e.Found == kubeproxy.Yes {
			seen = append(seen, e.Source+": "+e.Detail)
		}
	}
	switch {
	case p.State == kubeproxy.Running && d.attached() > 0:
		f := ok("kube-proxy runs too: connections of this node are served by firsthop first, packets from outside by kube-proxy alone").because(seen...)
		if r := d.cfg.Runtime.Runtime; r != nil {
			f.Details = r.Held
		}
		return f
	case p.State == kubeproxy.LeftOver:
		return warn("kube-proxy --cleanup, or a reboot", "kube-proxy is gone, but its rules are not: they lead to the backends of long ago").because(seen...)
	}
	return ok("%s", p.Summary())
}

// apiBackends are what the API service leads to, as text.
func (d *doctor) apiBackends() []string {
	if d.state == nil {
		return nil
	}
	var out []string
	for index := range apiIndexes(d.state, d.last, d.StateDir, d.cfg.Runtime) {
		for _, b := range d.state.Backends(d.state.ServiceStates[bpf.ServiceStateAt(index, false)]) {
			out = append(out, b.String())
		}
	}
	slices.Sort(out)
	return out
}

// directories judges who else may change what firsthop goes by.
func (d *doctor) directories(context.Context) Finding {
	var seen []string
	for _, dir := range []string{d.RunDir, d.StateDir} {
		trust, err := instance.Examine(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fail("give another directory, or make it one", "%s can't be used: %s", dir, err)
		case trust.Err() != nil:
			return fail("look what is in "+dir+", then: "+trust.Repair()+"; then "+runInit, "what the files in %s say is not believed: %s", dir, strings.Join(trust.Doubts, "; "))
		case len(trust.Exposed) > 0:
			seen = append(seen, fmt.Sprintf("%s lies below %s, where everybody may make files", dir, strings.Join(trust.Exposed, ", ")))
		}
	}
	return ok("only root may write what firsthop goes by").because(seen...)
}
