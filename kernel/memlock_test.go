package kernel

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRaiseMemlock(t *testing.T) {
	for _, test := range []struct {
		sentence, line string
		limit          uint64
		refuse         error
		want           Memlock
		says           string
	}{
		{"5.11 counts by cgroup: nothing is touched", "5.11.0", 65536, nil, Memlock{}, "not raised"},
		{"5.10 counts against the limit: raised", "5.10.0-32-cloud-amd64", 65536, nil, Memlock{Needed: true, Before: 65536, Raised: true}, "raised from 65536 bytes to unlimited"},
		{"RHEL 8: raised, for its 4.18 may be either", "4.18.0-513.9.1.el8_9.x86_64", 65536, nil, Memlock{Needed: true, Before: 65536, Raised: true}, "raised"},
		{"unlimited already: left alone", "5.4.0-42-generic", unix.RLIM_INFINITY, nil, Memlock{Needed: true, Before: unix.RLIM_INFINITY}, "unlimited already"},
		{"no right to raise it: said, with what to do", "5.4.0-42-generic", 65536, unix.EPERM,
			Memlock{Needed: true, Before: 65536, Error: "set RLIMIT_MEMLOCK: operation not permitted"}, "CAP_SYS_RESOURCE"},
	} {
		limit := unix.Rlimit{Cur: test.limit, Max: test.limit}
		got := raiseMemlock(hostOf(t, test.line), func(set, old *unix.Rlimit) error {
			if old != nil {
				*old = limit
			}
			if set != nil {
				if test.refuse != nil {
					return test.refuse
				}
				limit = *set
			}
			return nil
		})
		if got != test.want || !strings.Contains(got.String(), test.says) {
			t.Errorf("%s: %+v (%s), want %+v", test.sentence, got, got, test.want)
		}
		if got.Raised != (limit.Cur != test.limit) {
			t.Errorf("%s: the limit is %d, and it says %+v", test.sentence, limit.Cur, got)
		}
	}
}
