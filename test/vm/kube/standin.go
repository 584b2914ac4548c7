package kube

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// Backend is where the unit backend.service listens, and Greeting what it says to who connects.
var Backend = netip.MustParseAddrPort("192.0.2.10:8080")

const (
	Greeting = "a backend"
	// KubeletSaw is where the stand-in kubelet writes what came of its first connection, and KubeletReady of the one that
	// the API server answered.
	KubeletSaw   = "/run/kubelet-saw"
	KubeletReady = "/run/kubelet-ready"
)

// Main is what the units run, by a test's own program. It returns false for what is none of them.
func Main(args []string) (ours bool, err error) {
	switch args[len(args)-1] {
	case "backend":
		return true, Greet(":8080", Greeting)
	case "kubelet":
		return true, kubelet()
	}
	return false, nil
}

// kubelet asks the Service IP until the API server answers.
func kubelet() error {
	h, err := httpClient()
	if errors.Is(err, os.ErrNotExist) { // no API server in this boot
		conn, err := net.DialTimeout("tcp", VIP, 5*time.Second)
		if err == nil {
			conn.Close()
			err = errors.New("somebody answers")
		}
		return write(KubeletSaw, err)
	}
	if err != nil {
		return err
	}
	err = ready(h, VIP)
	if err := write(KubeletSaw, err); err != nil {
		return err
	}
	for ; err != nil; err = ready(h, VIP) {
		time.Sleep(200 * time.Millisecond)
	}
	return write(KubeletReady, nil)
}

func write(file string, saw error) error {
	text := "ok"
	if saw != nil {
		text = saw.Error()
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// Greet says words to who connects, and tells systemd when it can be connected to.
func Greet(address, words string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		systemd, err := net.Dial("unixgram", socket)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(systemd, "READY=1"); err != nil {
			return err
		}
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		_, _ = io.WriteString(conn, words) // who connected may be gone: a probe
		conn.Close()
	}
}

// Unroutable tells whether a connection failed for want of anybody who serves its address.
func Unroutable(saw string) bool {
	return strings.Contains(saw, "connect: network is unreachable") || strings.Contains(saw, "connect: no route to host")
}

// Visit returns what an address says, or why not.
func Visit(address string) string {
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

// WhileConnecting visits an address again and again until do returns, and wants the same answer each time.
func WhileConnecting(t testing.TB, address, want string, do func()) {
	t.Helper()
	stop, refusals := make(chan struct{}), make(chan []string)
	visits := 0
	go func() {
		var bad []string
		for {
			select {
			case <-stop:
				refusals <- bad
				return
			default:
				visits++
				if saw := Visit(address); saw != want {
					bad = append(bad, saw)
				}
			}
		}
	}()
	defer func() {
		close(stop)
		bad := <-refusals
		t.Logf("meanwhile %d connections to %s", visits, address)
		if len(bad) > 0 || visits == 0 {
			t.Errorf("meanwhile: %q", bad)
		}
	}()
	do()
}
