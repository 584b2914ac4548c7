package natinit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// The test binary is also the process that is killed, or has no capabilities, or keeps a socket open.
func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(child(mode, os.Args[1:]))
	}
	code := lab.RunMainInCgroup(m)
	os.RemoveAll(clientDir)
	os.Exit(code)
}

// clientDir holds the client program, which is built once, by the first test that needs it.
var clientDir = filepath.Join(os.TempDir(), "fh-client-"+strconv.Itoa(os.Getpid()))

var buildClient = sync.OnceValues(func() (string, error) {
	path := filepath.Join(clientDir, "client")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/firsthop/firsthop/test/clients/client")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

func clientPath(t testing.TB) string {
	t.Helper()
	path, err := buildClient()
	if err != nil {
		t.Fatal("build the client:", err)
	}
	return path
}

func goClient(t testing.TB) clients.Program { return clients.At(clientPath(t)) }
