package sockdiag

import (
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestReadStat(t *testing.T) {
	for _, tc := range []struct {
		protocol, key string
		n             int
		ok            bool
	}{
		{"TCP", "inuse", 4, true}, {"TCP", "alloc", 11, true}, {"TCP", "no", 0, false}, {"UDP", "inuse", 0, true},
		{"UDPLITE", "inuse", 3, true}, {"UDPLITE", "alloc", 0, false}, {"UDP6", "inuse", 0, false}, {"sockets", "inuse", 0, false},
		{"RAW", "inuse", 0, false}, {"FRAG", "inuse", 0, false},
	} {
		if n, ok := readStat("testdata/sockstat", tc.protocol, tc.key); n != tc.n || ok != tc.ok {
			t.Errorf("%s %s: %d, %v", tc.protocol, tc.key, n, ok)
		}
	}
	if n, ok := readStat(t.TempDir(), "TCP", "alloc"); n != 0 || ok {
		t.Errorf("a directory has %d, %v", n, ok)
	}
}

func TestInUse(t *testing.T) {
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
