package bpf

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplainMemoryNamesTheLimit(t *testing.T) {
	for errno, says := range map[error]string{unix.ENOMEM: "memory limit", unix.EPERM: "RLIMIT_MEMLOCK"} {
		err := explainMemory(fmt.Errorf("map create: %w", errno))
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v", err)
		}
	}
	if err := explainMemory(unix.EINVAL); err != unix.EINVAL {
		t.Errorf("%v", err)
	}
}
