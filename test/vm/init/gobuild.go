package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// builtDir holds the programs that the host has built, by the last part of their packages' paths.
const builtDir = "/built"

// goBuild does what `go build … -o PATH PACKAGE` would. The package "." is that of the working directory.
func goBuild(args []string) error {
	at := slices.Index(args, "-o")
	if len(args) < 2 || args[0] != "build" || at < 0 || at+1 >= len(args)-1 {
		return fmt.Errorf("%q: only build … -o PATH PACKAGE is there", args)
	}
	pkg := args[len(args)-1]
	if !path.IsAbs(pkg) {
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		if pkg == "." || path.Base(pkg) == ".." {
			pkg = filepath.Join(dir, pkg)
		}
	}
	in, err := os.Open(filepath.Join(builtDir, path.Base(pkg)))
	if err != nil {
		return fmt.Errorf("build %s: %w; suites.go lists the programs that the host builds", pkg, err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(args[at+1]), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(args[at+1], os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
