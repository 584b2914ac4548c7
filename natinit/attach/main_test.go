package attach

import (
	"fmt"
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		fmt.Fprintln(os.Stderr, child())
		os.Exit(1)
	}
	os.Exit(lab.RunMainInCgroup(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
