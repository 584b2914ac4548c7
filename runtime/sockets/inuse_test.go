package sockets

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestInUse(t *testing.T) {
	b, err := os.ReadFile("testdata/sockstat")
	must(t, err)
	for _, tc := range []struct {
		name string
		n    int
		ok   bool
	}{{"TCP", 4, true}, {"UDP", 0, true}, {"UDPLITE", 3, true}, {"UDP6", 0, false}, {"sockets", 0, false}} {
		if n, ok := parseInUse(b, tc.name); n != tc.n || ok != tc.ok {
			t.Errorf("%s: %d, %v", tc.name, n, ok)
		}
	}
	l := lab.New(t)
	check := func(what string, want bool) {
		t.Helper()
		must(t, l.Do(func() error {
			if inUse(bpf.UDP, false) != want || inUse(bpf.UDP, true) {
				t.Errorf("%s: UDP sockets in use: %v, want %v, and none of IPv6", what, !want, want)
			}
			return nil
		}))
	}
	check("at first", false)
	c, err := l.DialContext(t.Context(), "udp4", "127.0.0.1:7001")
	must(t, err)
	check("with one connected", true)
	must(t, c.Close())
}
