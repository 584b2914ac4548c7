package runtime

import (
	"net/netip"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/runtime/apihealth"
)

func TestAPIServersSeen(t *testing.T) {
	at := func(addr string, state apiserver.State) apihealth.EndpointStatus {
		return apihealth.EndpointStatus{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort(addr)}, State: state}
	}
	one, two, three := at("192.0.2.11:6443", apiserver.Live), at("192.0.2.12:6443", apiserver.NotReady), at("[2001:db8::1]:6443", apiserver.Dead)
	for want, seen := range map[string][]apihealth.EndpointStatus{
		"":             nil,
		"1 of 1 ready": {one},
		"1 of 3 ready, not 192.0.2.12:6443, [2001:db8::1]:6443": {one, two, three},
	} {
		if len(seen) > 0 {
			if got := apiServersSeen(apihealth.Status{Endpoints: append(seen[:len(seen):len(seen)], at("192.0.2.14:6443", apiserver.Unknown))}); got != "" {
				t.Errorf("one was not asked yet, and it says %q", got)
			}
		}
		if got := apiServersSeen(apihealth.Status{Endpoints: seen}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSteady(t *testing.T) {
	s := &steady{lasting: 30 * time.Second}
	start := time.Now()
	for i, step := range []struct {
		seconds    int
		text, want string
	}{
		{0, "", ""}, {1, "a", "a"}, {10, "b", "a"}, {20, "", "a"}, {30, "b", "a"}, {35, "a", "a"}, // b did not last
		{40, "b", "a"}, {69, "b", "a"}, {70, "b", "b"}, {80, "a", "b"}, {90, "c", "b"}, {115, "c", "b"}, {120, "c", "c"},
	} {
		if got := s.take(start.Add(time.Duration(step.seconds)*time.Second), step.text); got != step.want {
			t.Errorf("step %d: got %q, want %q", i, got, step.want)
		}
	}
}
