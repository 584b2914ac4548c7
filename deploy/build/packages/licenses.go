package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// licenses collects the license texts of everything that the program is linked with: its modules and Go's own library.
func licenses(ctx context.Context, repository string) ([]byte, error) {
	list := exec.CommandContext(ctx, "go", "list", "-deps", "-tags=urfave_cli_no_docs",
		"-f={{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/firsthop")
	list.Dir = repository
	// What a module needs on another system is none of the program's.
	list.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list the modules of the program: %w", err)
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go's own license: %w", err)
	}
	modules := append(strings.Fields(strings.ReplaceAll(string(out), " ", "@")), "the Go standard library", strings.TrimSpace(string(goroot)))
	dirs := map[string]string{}
	for i := 0; i+1 < len(modules); i += 2 {
		dirs[modules[i]] = modules[i+1]
	}
	var b bytes.Buffer
	names := make([]string, 0, len(dirs))
	for name := range dirs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		texts, err := licenseFiles(dirs[name])
		if err != nil {
			return nil, fmt.Errorf("find the license of %s: %w", name, err)
		}
		for _, file := range texts {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&b, "==== %s: %s\n\n%s\n\n", name, filepath.Base(file), bytes.TrimSpace(text))
		}
	}
	return b.Bytes(), nil
}

// licenseFiles are the files at the top of a module that have to go with its copies.
func licenseFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		for _, known := range []string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"} {
			if strings.HasPrefix(name, known) && e.Type().IsRegular() && !strings.HasSuffix(name, ".GO") {
				files = append(files, filepath.Join(dir, e.Name()))
				break
			}
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is none in %s", dir)
	}
	return files, nil
}
