package health

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

func hello(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]int{"hello": 1})
}

func TestAServerWaitsForItsPortAndSaysWhoHasIt(t *testing.T) {
	checkLeaks(t)
	port := freePort(t)
	other, err := net.Listen("tcp", fmt.Sprint(":", port))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	log, lines := newLog()
	var tries atomic.Int32
	holder := func(port uint16) string {
		tries.Add(1)
		return Holder(port)
	}
	s := NewServer(ServerConfig{Name: "/healthz", Addr: fmt.Sprint(":", port), Handler: http.HandlerFunc(hello), Log: log, Holder: holder, Retry: time.Millisecond})
	stop := run(t, s)

	me, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s (pid %d) has the port", strings.TrimSpace(string(me)), os.Getpid())
	lab.Await(t, "it says who has the port", func() bool { return strings.Contains(s.Status().Err, want) })
	lab.Await(t, "it tries again", func() bool { return tries.Load() > 3 })
	if st := s.Status(); st.Listening {
		t.Errorf("it listens where another program does: %+v", st)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "it takes the port", func() bool { return s.Status().Listening })
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		if a := ask(t, fmt.Sprintf("http://%s:%d/", host, port)); a.err != nil || a.code != 200 {
			t.Errorf("%s: %d, %v", host, a.code, a.err)
		}
	}
	if n := lines.count("not listening"); n != 1 {
		t.Errorf("logged %d times for one reason", n)
	}
	stop()
	if st := s.Status(); st.Listening || st.Err != "" {
		t.Errorf("after its end: %+v", st)
	}
	if a := ask(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); a.err == nil {
		t.Error("it answers after its end")
	}
}

func TestAnAddressThatIsNotThereIsTriedAgain(t *testing.T) {
	checkLeaks(t)
	log, lines := newLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "192.0.2.1:1", Handler: http.HandlerFunc(hello), Log: log, Retry: time.Millisecond})
	stop := run(t, s)
	lab.Await(t, "it fails", func() bool { return strings.Contains(s.Status().Err, "192.0.2.1:1") })
	stop()
	if n := lines.count("not listening"); n != 1 {
		t.Errorf("logged %d times for one reason", n)
	}
}

func TestConnectionsEndWithTheServer(t *testing.T) {
	checkLeaks(t)
	log, _ := newLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "127.0.0.1:0", Handler: http.HandlerFunc(hello), Log: log})
	stop := run(t, s)
	lab.Await(t, "it listens", func() bool { return s.Status().Listening })
	conn, err := net.Dial("tcp", s.Status().Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n")); err != nil { // and no more
		t.Fatal(err)
	}
	stop()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is still there: %v", err)
	}
}

func TestNobodyHoldsAFreePort(t *testing.T) {
	if h := Holder(freePort(t)); h != "" {
		t.Errorf("%q holds a free port", h)
	}
}

func TestAHolderWhoseProcessCannotBeSeenHasNoName(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/thread-self/net", 0o755); err != nil {
		t.Fatal(err)
	}
	line := "  sl  local_address rem_address   st\n" +
		"   0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
	if err := os.WriteFile(dir+"/thread-self/net/tcp", []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	if h := holderIn(dir, 10256); h != "" {
		t.Errorf("%q", h)
	}
	for pid, inode := range map[string]string{"41": "4710", "42": "4711"} {
		if err := os.MkdirAll(dir+"/"+pid+"/fd", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:["+inode+"]", dir+"/"+pid+"/fd/3"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/"+pid+"/comm", []byte("kube-proxy\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if h := holderIn(dir, 10256); h != "kube-proxy (pid 42)" {
		t.Errorf("%q", h)
	}
	if h := holderIn(dir, 10255); h != "" {
		t.Errorf("another port: %q", h)
	}
}

// TestServerAnswersBesideAFlood of connections that send nothing.
func TestServerAnswersBesideAFlood(t *testing.T) {
	checkLeaks(t)
	log, _ := newLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "127.0.0.1:0", Handler: http.HandlerFunc(hello), Log: log})
	run(t, s)
	lab.Await(t, "it listens", func() bool { return s.Status().Listening })
	for range 3 * connections {
		c, err := net.Dial("tcp", s.Status().Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if a := ask(t, "http://"+s.Status().Addr+"/"); a.err != nil || a.code != 200 {
		t.Errorf("%d, %v", a.code, a.err)
	}
	if open, _ := s.cfg.Budget.Status(); open > connections {
		t.Errorf("%d connections are open, want %d at most", open, connections)
	}
}
