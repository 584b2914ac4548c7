package binaries

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAGivenDirectoryIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver", "kube-proxy"} {
		_, err := Ensure(t.Context(), Config{Given: dir})
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
			t.Errorf("without %s: got %v, want an error that names it", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Ensure(t.Context(), Config{Given: dir})
	if err != nil || p != In(dir) {
		t.Errorf("got %v, %v, want what is there", p, err)
	}
}

func TestAFileThatIsNoProgramIsMissing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver", "kube-proxy"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := In(dir).missing(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestAFailureOfGoIsShown(t *testing.T) {
	_, err := Ensure(t.Context(), Config{Module: t.TempDir(), Cache: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "go list") {
		t.Errorf("outside of a module: got %v, want what go says", err)
	}
}

func TestALockWaitsForAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := Lock(path)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	select {
	case err := <-got:
		t.Errorf("got the lock while another has it: %v", err)
	case <-ctx.Done():
	}
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
