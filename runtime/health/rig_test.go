package health

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// patience is how long anything may take on a machine that is busy with other tests.
const patience = time.Minute

// checkLeaks fails the test if goroutines of this package are left at its end.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left string
		lab.Await(t, "no goroutine is left", func() bool {
			stacks := make([]byte, 1<<20)
			left = ""
			for g := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
				if strings.Contains(g, "runtime/health.(*") || strings.Contains(g, "net/http.(*Server)") {
					left += g + "\n\n"
				}
			}
			return left == ""
		})
		if left != "" {
			t.Error(left)
		}
	})
}

// freePort is a port without a listener, in both families.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(l.Addr().String()).Port()
		l.Close()
		if l, err = net.Listen("tcp", fmt.Sprint(":", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// asked is an answer, or none.
type asked struct {
	code   int
	header http.Header
	body   map[string]any
	err    error
}

// ask makes one connection for one question.
func ask(t *testing.T, url string) asked {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return asked{err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return asked{err: err}
	}
	a := asked{code: resp.StatusCode, header: resp.Header}
	if err := json.Unmarshal(text, &a.body); err != nil {
		t.Fatalf("%s: %v: %s", url, err, text)
	}
	return a
}

// run serves until the test ends, or until stop is called.
func run(t *testing.T, s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}
