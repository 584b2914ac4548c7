// Package licenses has the texts that must go with every copy of the program: packages and images have them.
package licenses

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

// FileName is what the file with all texts is called.
const FileName = "THIRD-PARTY-LICENSES"

// ThirdParty collects the license texts of everything that the program is linked with on any architecture: its modules
// and Go's own library. Each begins with a heading that names the module and its version.
func ThirdParty(ctx context.Context, repository string) ([]byte, error) {
	dirs := map[string]string{}
	for _, arch := range architectures {
		if err := modules(ctx, repository, arch, dirs); err != nil {
			return nil, fmt.Errorf("list the modules of the program for %s: %w", arch, err)
		}
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go's own license: %w", err)
	}
	dirs["the Go standard library"] = strings.TrimSpace(string(goroot))
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

// architectures are those that the program is built for.
var architectures = []string{"amd64", "arm64"}

// modules adds the directories of those modules that the program is linked with, by name and version.
func modules(ctx context.Context, repository, arch string, dirs map[string]string) error {
	list := exec.CommandContext(ctx, "go", "list", "-deps", "-tags=urfave_cli_no_docs",
		"-f={{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/firsthop")
	list.Dir = repository
	list.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		dirs[name] = dir
	}
	return nil
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
