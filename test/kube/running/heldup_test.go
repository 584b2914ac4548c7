package running

import (
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestARuntimeThatIsHeldUpSaysSo keeps the table's lock, as an init stage that hangs does: what the runtime is asked is
// answered at once, and tells of it.
func TestARuntimeThatIsHeldUpSaysSo(t *testing.T) {
	s := newSite(t, 1)
	s.node.init(s.cluster.Servers)
	at := netip.AddrPortFrom(s.node.IPs[0], 10256)
	metrics := netip.AddrPortFrom(s.node.IPs[0], 10249)
	s.node.start("--healthz-bind-address="+at.String(), "--metrics-bind-address="+metrics.String())
	svc := s.service("web", 1)
	s.fence.await()

	client := http.Client{Transport: &http.Transport{DialContext: s.node.DialContext, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	ask := func(url string) (code int, body string) {
		t.Helper()
		began := time.Now()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s took %s", url, took)
		}
		return resp.StatusCode, string(text)
	}
	livez := func() int {
		code, _ := ask("http://" + at.String() + "/livez")
		return code
	}
	if code := livez(); code != http.StatusOK {
		t.Errorf("/livez: %d", code)
	}

	lock, err := os.Open(s.node.BPFFS)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	held := time.Now()
	for n := range 5 { // each is news to the runtime, and none is written
		s.cluster.Apply(sliceOf(svc, 2+n))
	}
	eventually(t, "status tells of what waits", func() string {
		out, _ := s.node.command("status")
		if code := livez(); code != http.StatusOK && time.Since(held) < 55*time.Second {
			t.Errorf("/livez after %s: %d", time.Since(held), code)
		}
		if _, page := ask("http://" + metrics.String() + "/metrics"); !strings.Contains(page, "\nfirsthop_table_adopted 1\n") {
			t.Errorf("/metrics says\n%s", page)
		}
		if strings.Contains(out, "changes wait to be written") {
			return ""
		}
		return out
	})
	if long() {
		for livez() != http.StatusServiceUnavailable {
			if time.Since(held) > 2*time.Minute {
				t.Fatal("/livez does not tell of what waits")
			}
			time.Sleep(time.Second)
		}
		t.Logf("/livez said 503 after %s", time.Since(held).Round(time.Second))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	s.fence.await()
	if code := livez(); code != http.StatusOK {
		t.Errorf("/livez when all is written: %d", code)
	}
	s.node.stop()
}
