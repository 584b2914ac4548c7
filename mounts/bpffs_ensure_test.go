package mounts

import (
	"context"
	"errors"
	"testing"
)

// The lock is waited for no longer than the context allows.
func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(t.Context(), dir)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	unlock()
	unlock, err = lockDir(ctx, dir)
	must(t, err)
	unlock()
}
