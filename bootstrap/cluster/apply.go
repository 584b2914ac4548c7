package cluster

import (
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/firsthop/firsthop/bootstrap"
)

// write applies an object and notes whether that changed it. One that would stay as it is, is not written: Kubernetes would
// note a new time for our fields once another manager has come, as kube-controller-manager does for a policy's status.
func (w *work) write(o object) error {
	before, err := w.read(w.ctx, o)
	if err != nil {
		return err
	}
	if before != nil && before.managed() {
		if planned, err := w.apply(w.ctx, o, w.Force, true); err == nil && !changed(before, planned) {
			return nil
		}
	}
	after, err := w.apply(w.ctx, o, w.Force, false)
	if err != nil {
		if apierrors.IsConflict(err) {
			w.rep.Refusals = []string{conflict(err)}
			w.rep.Next = []string{"run it again: it continues where it stopped"}
			return w.stop(bootstrap.ExitInternal, "stopped at %s: somebody else has set fields of it meanwhile", o)
		}
		return err
	}
	w.wrote(o, before, after)
	return nil
}

// changed compares what somebody writes. The version also changes when a controller writes the status meanwhile.
func changed(before, after object) bool { return !reflect.DeepEqual(before.content(), after.content()) }

func (w *work) wrote(o, before, after object) {
	switch {
	case before == nil:
		w.did("apply", "created %s", o)
	case changed(before, after):
		w.did("apply", "changed %s", o)
	}
}
