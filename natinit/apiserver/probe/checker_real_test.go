package probe

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/apitest"
)

// The real one keeps the connection, whether it lets anybody ask or not.
func TestARealAPIServerAnswersOverOneConnection(t *testing.T) {
	for _, tc := range []struct {
		anonymous string
		status    int
	}{{"true", 200}, {"false", 401}} {
		t.Run("anonymous requests: "+tc.anonymous, func(t *testing.T) {
			ca := apitest.NewCA(t)
			apitest.StartReal(t, ca, "--anonymous-auth="+tc.anonymous)
			var dials atomic.Int32
			c := newChecker(t, ep(apitest.RealAddress), Config{Trust: &apiserver.Trust{CA: ca.PEM}, Dial: counted(&dials)})
			until := time.Now().Add(time.Minute)
			for c.Check(t.Context(), false).Status != tc.status { // its checks after the start
				if time.Now().After(until) {
					t.Fatalf("got %+v", c.Check(t.Context(), false))
				}
			}
			dials.Store(0)
			var worst time.Duration
			for range 50 {
				r := c.Check(t.Context(), true)
				if r.State != apiserver.Live || r.Status != tc.status || !r.Verified {
					t.Fatalf("got %+v", r)
				}
				worst = max(worst, r.Latency)
			}
			if n := dials.Load(); n != 0 {
				t.Errorf("%d more connections for 50 questions", n)
			}
			t.Logf("slowest answer %v", worst)
		})
	}
}
