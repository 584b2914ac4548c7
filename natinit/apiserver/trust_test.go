package apiserver

import (
	"encoding/pem"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

func TestSameCA(t *testing.T) {
	a, b := apitest.NewCA(t), apitest.NewCA(t)
	for sentence, tc := range map[string]struct {
		a, b []byte
		want bool
	}{
		"the same":                    {a.PEM, a.PEM, true},
		"another":                     {a.PEM, b.PEM, false},
		"bundles that overlap":        {slices.Concat(a.PEM, b.PEM), b.PEM, true},
		"renewed with the same key":   {a.PEM, a.Renew(t).PEM, true},
		"cross-signed by another":     {a.PEM, b.CrossSign(t, a), true},
		"none":                        {nil, a.PEM, false},
		"what is no certificate":      {[]byte("ca"), []byte("ca"), false},
		"a damaged one beside a good": {slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), a.PEM), a.PEM, true},
	} {
		if got := SameCA(tc.a, tc.b); got != tc.want || SameCA(tc.b, tc.a) != tc.want {
			t.Errorf("%s: %t, want %t", sentence, got, tc.want)
		}
	}
}
