package bpf

import (
	"os"
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv(bpffsOfChild) != "" { // may not even list BPF objects
		os.Exit(m.Run())
	}
	os.Exit(lab.RunMain(m))
}
