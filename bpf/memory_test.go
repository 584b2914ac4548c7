package bpf

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTooLittleMemoryIsToldWithItsLimit(t *testing.T) {
	for errno, says := range map[error]bool{unix.ENOMEM: true, unix.EPERM: false} {
		err := explainMemory(fmt.Errorf("map create: %w", errno))
		if !errors.Is(err, errno) || strings.Contains(err.Error(), "memory limit") != says {
			t.Errorf("%v", err)
		}
	}
}
