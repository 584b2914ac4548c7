package devices

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Nothing that the kernel could send makes a parser read beyond the message.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{unix.AF_INET, 8, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 8, 0, unix.RTA_DST, 0, 10, 0, 0, 0, 8, 0, unix.RTA_OIF, 0, 2, 0, 0, 0})
	f.Add([]byte{unix.AF_INET, 8, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0, 8, 0, unix.RTA_DST, 0, 10, 0, 0, 0, 20, 0, unix.RTA_MULTIPATH, 0, 16, 0, 0, 0, 2, 0, 0, 0, 8, 0, unix.RTA_GATEWAY, 0, 10, 0, 0, 1})
	f.Add([]byte{unix.AF_INET6, 64, 0x80, 0, 1, 0, 0, 0, 20, 0, unix.IFA_ADDRESS, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, m []byte) {
		parseLink(m)
		parseAddr(m)
		parseRuleTable(m)
		parseNexthop(m)
		var r routeMessage
		if parseRoute(m, &r) != nil {
			return
		}
		if !r.Destination.IsValid() {
			t.Errorf("a route to %v", r.Destination)
		}
		hops := 0
		for range r.nextHops() {
			hops++
		}
		if hops > len(m) {
			t.Errorf("%d next hops", hops)
		}
	})
}
