package nodes

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
	"github.com/firsthop/firsthop/test/kube/binaries"
)

// files is what nodes are made of.
type files struct {
	repository string
	build      binaries.Config
	version    string // of Kubernetes, as v1.36.3
	programs   string // the directory of Kubernetes' programs
	firsthop   string // the program under test
	next       string // the same with another version
	root       string // the root file system
	images     string // the directory of the images
}

// The versions of firsthop and firsthop-next.
const (
	testVersion = "v0.0.1-test"
	nextVersion = "v0.0.2-test"
)

// made is what this process has made.
var made = struct {
	sync.Mutex
	*files
}{}

// ensure makes what is not there yet, and says what takes long.
func ensure(t testing.TB) files {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	if made.files == nil {
		f, err := makeFiles(t.Context(), os.Stderr)
		if err != nil {
			t.Fatal("prepare nodes:", err)
		}
		made.files = &f
	}
	return *made.files
}

// Prepare makes what nodes are made of, and says what takes long: two minutes for the very first time, and what
// [binaries.EnsureNodes] takes.
func Prepare(ctx context.Context, log io.Writer) error {
	_, err := makeFiles(ctx, log)
	return err
}

func makeFiles(ctx context.Context, log io.Writer) (f files, err error) {
	_, file, _, _ := runtime.Caller(0)
	module := filepath.Dir(filepath.Dir(file))
	f.repository = filepath.Join(module, "../..")
	f.build = binaries.Config{Given: os.Getenv(apitest.KubeBin), Module: module, Cache: filepath.Join(f.repository, ".cache/kube"), Log: log}
	cache := f.build.Cache
	f.programs, f.version, err = binaries.EnsureNodes(ctx, f.build)
	if err != nil {
		return f, err
	}
	if err := os.MkdirAll(filepath.Join(cache, "nodes"), 0o755); err != nil {
		return f, err
	}
	unlock, err := binaries.Lock(filepath.Join(cache, "nodes/lock"))
	if err != nil {
		return f, err
	}
	defer unlock()
	if f.root, err = ensureRoot(ctx, cache, log); err != nil {
		return f, err
	}
	// Its own directory is for the image, too.
	f.firsthop = filepath.Join(cache, "nodes/firsthop/firsthop")
	if err := f.buildFirsthop(ctx, f.firsthop, testVersion); err != nil {
		return f, err
	}
	f.next = filepath.Join(cache, "nodes/firsthop-next/firsthop")
	if err := f.buildFirsthop(ctx, f.next, nextVersion); err != nil {
		return f, err
	}
	f.images = filepath.Join(cache, "nodes/images")
	return f, f.ensureImages(log)
}

// buildFirsthop builds the product as make does.
func (f files) buildFirsthop(ctx context.Context, to, version string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "urfave_cli_no_docs",
		"-ldflags", "-s -w -X main.version="+version, "-o", to, "./cmd/firsthop")
	cmd.Dir = f.repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build firsthop: %w: %s", err, out)
	}
	return nil
}
