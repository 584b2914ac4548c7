package oracle

import (
	"net/netip"
	"reflect"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Equal tells whether two Results are the same.
func Equal(a, b Result) bool { return reflect.DeepEqual(a, b) }

// Diff shows how two Results differ: - is the first one's, + the second one's.
func Diff(a, b Result) string {
	return cmp.Diff(a, b, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateComparable(Frontend{}))
}

// Explanation is why what we do with a world is what we want, although kube-proxy does something else.
type Explanation struct {
	// Theirs is what kube-proxy does with the world after all rewritings of Differences.
	Theirs Result
	Panic  error // theirs, after all that
	OK     bool  // whether that is what we do
	// Applied are the Differences that had something to rewrite, by their places.
	Applied []int
}

// Explain looks whether Differences make kube-proxy do what we do.
func Explain(w *World, ours Result) Explanation {
	var e Explanation
	e.Theirs, e.Applied, e.Panic = rewritten(w, -1)
	e.OK = e.Panic == nil && Equal(e.Theirs, ours)
	return e
}

// Needs tells whether kube-proxy does not do what we do when all Differences are rewritten but one.
func Needs(w *World, ours Result, difference int) bool {
	theirs, _, err := rewritten(w, difference)
	return err != nil || !Equal(theirs, ours)
}

// rewritten is what kube-proxy does after all rewritings but one, and which of them changed something.
func rewritten(w *World, but int) (Result, []int, error) {
	w = w.Clone()
	var applied []int
	var before Result
	var pick func(before, after Result) Result
	for i, d := range Differences {
		if i == but {
			continue
		}
		former := w
		if d.Pick != nil {
			former = w.Clone()
		}
		if !d.Rewrite(w) {
			continue
		}
		applied = append(applied, i)
		if d.Pick == nil {
			continue
		}
		var err error
		if before, err = Theirs(former); err != nil {
			return nil, applied, err
		}
		pick = d.Pick
	}
	after, err := Theirs(w)
	if err == nil && pick != nil {
		after = pick(before, after)
	}
	return after, applied, err
}
