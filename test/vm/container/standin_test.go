package container

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

const (
	vip      = "10.96.0.1:443"
	server   = "192.0.2.10:6443" // of testdata/units/apiserver.service
	greeting = "the stand-in API server"
	// kubeletSaw is where the stand-in kubelet writes what came of its first connection.
	kubeletSaw = "/run/kubelet-saw"
)

// TestMain is also what the units and the visiting containers run.
func TestMain(m *testing.M) {
	var err error
	switch os.Args[len(os.Args)-1] {
	case "stand-in-apiserver":
		err = serve()
	case "stand-in-kubelet":
		err = os.WriteFile(kubeletSaw, []byte(visit(vip)), 0o644)
	case "visit":
		fmt.Println(visit(vip))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve greets who connects, and tells systemd when it can be connected to.
func serve() error {
	l, err := net.Listen("tcp", ":6443")
	if err != nil {
		return err
	}
	ready, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := io.WriteString(ready, "READY=1"); err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		_, _ = io.WriteString(conn, greeting) // who connected may be gone: a probe
		conn.Close()
	}
}

// visit returns what an address says, or why not.
func visit(address string) string {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err.Error()
	}
	said, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(said))
}
