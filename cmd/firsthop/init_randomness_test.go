package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/lab"
)

// noRandomness in the environment makes the test binary become the program in its arguments on a kernel that has no random
// numbers yet. getrandom says so instead of waiting, and a program that would wait crashes.
const noRandomness = "FH_TEST_NO_RANDOMNESS"

func becomeWithoutRandomness(args []string) error {
	if err := lab.Refuse(lab.Refusal{Call: unix.SYS_GETRANDOM, Errno: unix.EAGAIN}); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, []string{"PATH=" + os.Getenv("PATH")})
}

func withoutRandomness(cmd *exec.Cmd) {
	cmd.Env = append(cmd.Env, noRandomness+"=1")
	cmd.Path = "/proc/self/exe" // this test
}

// TestInitDoesNotWaitForRandomness: a machine without a source of randomness, as a virtual one with Linux 5.3, may wait for
// ever. All that needs TLS ends in time and says why.
func TestInitDoesNotWaitForRandomness(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.runAs(withoutRandomness, "uninstall", "--dry-run").exits(0) // it starts at all
	n.runAs(withoutRandomness, initArgs("--prove", "ready", "--timeout", "500ms")...).exits(bootstrap.ExitProof).says("no random numbers", "virtio-rng")
	n.init()
	n.runAs(withoutRandomness, "doctor").says("no random numbers")
	n.runAs(withoutRandomness, "status").exits(0)
	root := filepath.Join(n.Dir, "host")
	n.kubeconfigWithCA(root, "https://"+server4)
	n.runAs(withoutRandomness, "discover", "--timeout", "500ms", "--root", root).says("no random numbers")
	n.runAs(withoutRandomness, "uninstall", "--force").exits(0)
}

// kubeconfigWithCA puts a kubelet's credentials below a root, for the API server that serve started last.
func (n node) kubeconfigWithCA(root, server string) {
	n.Helper()
	ca, err := os.ReadFile(filepath.Join(n.Dir, "ca.crt"))
	if err != nil {
		n.Fatal(err)
	}
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x",
"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],
"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"token":"t"}}]}`,
		server, base64.StdEncoding.EncodeToString(ca))
	path := filepath.Join(root, "etc/kubernetes/kubelet.conf")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
}
