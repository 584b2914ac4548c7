package cluster

import (
	"context"
	"fmt"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// Install brings firsthop to every node of a cluster that can run it. Interrupted anywhere, the next call does the rest.
func Install(ctx context.Context, cfg Config) (*Report, error) {
	w, err := newWork(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return w.finish(w.install())
}

func (w *work) install() error {
	objects, err := render(w.Values)
	if err != nil {
		return err
	}
	ds := daemonSetOf(objects)
	if err := w.mayInstall(objects, ds); err != nil {
		return err
	}
	if w.DryRun {
		return w.planInstall(objects)
	}
	live, err := w.read(w.ctx, ds)
	if err != nil {
		return err
	}
	if err := w.preflight(ds, live); err != nil {
		return err
	}
	if err := w.record(objects); err != nil {
		return err
	}
	for _, o := range objects {
		if o.kind() == "DaemonSet" {
			continue
		}
		if err := w.write(o); err != nil {
			return err
		}
	}
	if err := w.rollOut(ds, live); err != nil {
		return err
	}
	return w.sum()
}

// planInstall says what would be written.
func (w *work) planInstall(objects []object) error {
	for _, o := range objects {
		before, err := w.read(w.ctx, o)
		if err != nil {
			return err
		}
		after, err := w.apply(w.ctx, o, w.Force, true)
		if err != nil {
			return err
		}
		switch {
		case before == nil:
			w.rep.Changes = append(w.rep.Changes, "create "+o.String())
		case changed(before, after):
			w.rep.Changes = append(w.rep.Changes, "change "+o.String())
		}
	}
	w.rep.Sentence = "dry run: nothing was changed; the nodes were not asked, for which a pod runs on each"
	return nil
}

// sum is the end of an install: what is served, what is not, and what comes next.
func (w *work) sum() error {
	f, err := w.look(w.ctx)
	if err != nil {
		return err
	}
	w.rep.Cluster = f
	served, out := 0, 0
	for _, n := range f.Nodes {
		switch {
		case n.Rollout != "":
			out++
		case n.ConnectTime.Proven:
			served++
		}
	}
	w.rep.Sentence = fmt.Sprintf("%d of %d nodes serve every Service at connect time, and have proven it", served, len(f.Nodes))
	if out > 0 {
		w.rep.Result = diagnose.Warn
		w.rep.Sentence += fmt.Sprintf("; %d are left out", out)
	}
	w.rep.Next = next(f)
	return nil
}

// needsKubeProxy is said wherever firsthop is installed: connections are one fact, packets from outside another.
const needsKubeProxy = "packets from outside of the cluster are not served by firsthop: they need kube-proxy"

// next says what is not served, and what comes next.
func next(f *Facts) []string {
	out := []string{needsKubeProxy}
	if n := len(f.FromOutside); n > 0 {
		out = append(out, fmt.Sprintf("%d Services have node ports, load balancers or external IPs, which need kube-proxy: %s", n, few(f.FromOutside)))
	}
	return append(out, "firsthop cluster status     what each node says of itself", "firsthop cluster uninstall  undoes all of it")
}
