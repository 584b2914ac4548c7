package oracle

import (
	"reflect"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"net/netip"
)

// Equal tells whether two Results are the same.
func Equal(a, b Result) bool { return reflect.DeepEqual(a, b) }

// Diff shows how two Results differ: what is ours alone with a +.
func Diff(theirs, ours Result) string {
	return cmp.Diff(theirs, ours, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmpopts.EquateComparable(Frontend{}), cmp.Transformer("port", PortKey.String))
}

// Explanation is why what we do with a world is what we want, although kube-proxy does something else.
type Explanation struct {
	// Theirs is what kube-proxy does with the world, after all rewritings that apply.
	Theirs Result
	Panic  error // theirs, after all that
	OK     bool  // whether that is what we do
	// Needed are the names of Differences without which it is not.
	Needed []string
}

// Explain looks for the Differences that make kube-proxy do what we do.
func Explain(w *World, ours Result) Explanation {
	var e Explanation
	var applied []int
	e.Theirs, applied, e.Panic = rewritten(w, -1)
	if e.OK = e.Panic == nil && Equal(e.Theirs, ours); !e.OK {
		return e
	}
	for _, i := range applied {
		if without, _, err := rewritten(w, i); err != nil || !Equal(without, ours) {
			e.Needed = append(e.Needed, Differences[i].Name)
		}
	}
	return e
}

// rewritten is what kube-proxy does after all rewritings but one, and which of them changed something.
func rewritten(w *World, but int) (Result, []int, error) {
	w = w.Clone()
	var applied []int
	var pick func(before, after Result) Result
	var before Result
	for i, d := range Differences {
		if i == but {
			continue
		}
		if d.Pick != nil { // the last one: see Differences
			var err error
			if before, err = Theirs(w); err != nil {
				return nil, applied, err
			}
		}
		if d.Rewrite(w) {
			applied = append(applied, i)
			pick = d.Pick
		}
	}
	after, err := Theirs(w)
	if err == nil && pick != nil {
		after = pick(before, after)
	}
	return after, applied, err
}
