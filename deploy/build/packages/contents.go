package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/goreleaser/nfpm/v2/files"

	"github.com/firsthop/firsthop/deploy/build/licenses"
	"github.com/firsthop/firsthop/units"
)

// file is a file of the packages. All belong to root.
type file struct {
	path   string
	data   []byte
	mode   fs.FileMode
	kept   bool   // the administrator's changes survive an upgrade
	format string // "deb" or "rpm" if it is in packages of that format only
}

// contents are all files of the packages but the program.
func (b Build) contents(ctx context.Context, version string) ([]file, error) {
	data := func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(b.Repository, "deploy/packages", name))
	}
	settings, err := data("default")
	if err != nil {
		return nil, err
	}
	copyright, err := data("copyright")
	if err != nil {
		return nil, err
	}
	overrides, err := data("lintian-overrides")
	if err != nil {
		return nil, err
	}
	bsd, err := os.ReadFile(filepath.Join(b.Repository, "bpf/LICENSE-BSD-2-Clause"))
	if err != nil {
		return nil, err
	}
	license, err := os.ReadFile(filepath.Join(b.Repository, "LICENSE"))
	if err != nil {
		return nil, err
	}
	others, err := licenses.ThirdParty(ctx, b.Repository)
	if err != nil {
		return nil, err
	}
	news, err := os.ReadFile(filepath.Join(b.Repository, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	unit, err := units.PackageUnit()
	if err != nil {
		return nil, err
	}
	runtimeUnit, err := units.RuntimeUnit()
	if err != nil {
		return nil, err
	}
	page, err := b.manPage(ctx, version)
	if err != nil {
		return nil, err
	}
	const doc = "/usr/share/doc/firsthop/"
	list := []file{
		{path: units.EnvironmentFile, data: settings, kept: true},
		{path: "/usr/lib/systemd/system/" + units.ServiceName, data: unit},
		{path: "/usr/lib/systemd/system/" + units.RuntimeServiceName, data: runtimeUnit},
		{path: "/usr/share/man/man8/firsthop.8.gz", data: compress([]byte(page))},
		{path: doc + "NEWS.gz", data: compress(news)},
		{path: doc + licenses.FileName + ".gz", data: compress(others)},
		{path: doc + "copyright", data: bytes.Replace(copyright, []byte("@BSD@"), paragraph(bsd), 1)},
		{path: doc + "LICENSE", data: license, format: "rpm"}, // Debian has it in /usr/share/common-licenses
		{path: doc + "changelog.gz", data: compress(b.debianChangelog(version)), format: "deb"},
		{path: "/usr/share/lintian/overrides/firsthop", data: overrides, format: "deb"},
	}
	shells, err := b.completions(ctx)
	return append(list, shells...), err
}

// paragraph makes a text a field's value, as deb822(5) has it.
func paragraph(text []byte) []byte {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i, line := range lines {
		if line == "" {
			line = "."
		}
		lines[i] = " " + line
	}
	return []byte(strings.Join(lines, "\n"))
}

// program returns one of the programs that runs on this machine.
func (b Build) program() (string, error) {
	for _, p := range b.Programs {
		if p.Arch == runtime.GOARCH {
			return p.Path, nil
		}
	}
	return "", fmt.Errorf("ask the program for its help: none of the programs is for %s", runtime.GOARCH)
}

func (b Build) manPage(ctx context.Context, version string) (string, error) {
	program, err := b.program()
	if err != nil {
		return "", err
	}
	top, commands, err := readHelp(ctx, program)
	if err != nil {
		return "", err
	}
	frame, err := os.ReadFile(filepath.Join(b.Repository, "deploy/packages/firsthop.8.in"))
	if err != nil {
		return "", err
	}
	return manPage(string(frame), top, commands, version, b.Time)
}

func (b Build) completions(ctx context.Context) ([]file, error) {
	program, err := b.program()
	if err != nil {
		return nil, err
	}
	var list []file
	for _, c := range []struct{ shell, path, more, format string }{
		{"bash", "/usr/share/bash-completion/completions/firsthop", "", ""},
		{"fish", "/usr/share/fish/vendor_completions.d/firsthop.fish", "", ""},
		// Loaded by its name, it has to answer the first question too.
		{"zsh", "/usr/share/zsh/vendor-completions/_firsthop", autoload, "deb"},
		{"zsh", "/usr/share/zsh/site-functions/_firsthop", autoload, "rpm"},
	} {
		script, err := exec.CommandContext(ctx, program, "completion", c.shell).Output()
		if err != nil {
			return nil, fmt.Errorf("ask the program for %s's completion: %w", c.shell, err)
		}
		list = append(list, file{path: c.path, data: append(script, c.more...), format: c.format})
	}
	return list, nil
}

const autoload = "if [[ $funcstack[1] == _firsthop ]]; then _firsthop \"$@\"; fi\n"

// debianChangelog has this version alone: what changed is in NEWS.gz.
func (b Build) debianChangelog(version string) []byte {
	return fmt.Appendf(nil, "firsthop (%s) unstable; urgency=medium\n\n  * This version. See NEWS.gz for what is new.\n\n -- %s  %s\n",
		version, maintainer, b.Time.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
}

// compress is gzip -9n: without a name and a time.
func compress(data []byte) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // a level that there is
	_, _ = z.Write(data)                                  // to memory
	_ = z.Close()
	return b.Bytes()
}

// stage writes the files below a directory and lists them for nfpm.
func stage(dir, format string, list []file) (files.Contents, error) {
	var contents files.Contents
	dirs := map[string]bool{}
	for i, f := range list {
		if f.format != "" && f.format != format {
			continue
		}
		source := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(source, f.data, 0o600); err != nil {
			return nil, err
		}
		c := &files.Content{Source: source, Destination: f.path, FileInfo: &files.ContentFileInfo{Mode: 0o644}}
		if f.mode != 0 {
			c.FileInfo.Mode = f.mode
		}
		if f.kept {
			c.Type = files.TypeConfigNoReplace
		}
		contents = append(contents, c)
		for _, own := range ownDirs(format, f.path) {
			if !dirs[own] {
				dirs[own] = true
				contents = append(contents, &files.Content{Destination: own, Type: files.TypeDir, FileInfo: &files.ContentFileInfo{Mode: 0o755}})
			}
		}
	}
	return contents, nil
}

// ownDirs are the directories that come with a file: our own, and for rpm, which leaves the others behind, those that
// are not of every system. dpkg removes all that are empty.
func ownDirs(format, name string) (list []string) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		shells := strings.HasPrefix(dir, "/usr/share/fish") || strings.HasPrefix(dir, "/usr/share/zsh")
		if path.Base(dir) == "firsthop" || format == "rpm" && shells {
			list = append(list, dir)
		}
	}
	return list
}
