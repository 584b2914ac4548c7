package runtime

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/runtime/nodestatus"
)

func TestNodeReport(t *testing.T) {
	gone, failed := errors.New("connect4 is not attached"), errors.New("connection refused")
	for name, tc := range map[string]struct {
		node   node
		mode   nodestatus.Mode
		reason string
	}{
		"all is well":                                 {node{written: true}, nodestatus.Active, "Serving"},
		"not attached at one look":                    {node{written: true, attached: gone}, nodestatus.Active, "NotAttached"},
		"not attached, and one proof failed":          {node{written: true, attached: gone, proof: failed, fails: 1}, nodestatus.Active, "NotAttached"},
		"not attached, and proofs fail":               {node{written: true, attached: gone, proof: failed, fails: failsUntilFallback}, nodestatus.Fallback, "NotAttached"},
		"attached, and one proof failed":              {node{written: true, proof: failed, fails: 1}, nodestatus.Active, "Serving"},
		"attached, and proofs fail":                   {node{written: true, proof: failed, fails: failsUntilFallback}, nodestatus.Fallback, "ProofFailed"},
		"nothing written yet":                         {node{}, nodestatus.Active, "WaitingForServices"},
		"a full table":                                {node{written: true, full: true}, nodestatus.Active, "TableFull"},
		"damage that does not touch traffic":          {node{written: true, fault: gone}, nodestatus.Active, "DataplaneDamaged"},
		"proofs that fail say more than a full table": {node{written: true, full: true, proof: failed, fails: 9}, nodestatus.Fallback, "ProofFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.node.report()
			if got.Mode != tc.mode || got.Reason != tc.reason || (got.Ready == corev1.ConditionTrue) != (tc.reason == "Serving") {
				t.Errorf("%+v, want %v, %s", got, tc.mode, tc.reason)
			}
		})
	}
}
