package wire

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv(attacherEnv) != "" {
		os.Exit(attachAndWait())
	}
	os.Exit(lab.RunMain(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
