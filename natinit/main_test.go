package natinit

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

// The test binary is also the process that is killed, or has no capabilities, or keeps a socket open.
func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(child(mode, os.Args[1:]))
	}
	os.Exit(lab.RunMain(m))
}
