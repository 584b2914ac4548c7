package nodeconf

import (
	"cmp"
	"path"
	"slices"
	"strings"
)

// Commands lists what the services of the host run, as far as the names or
// places of their files let expect a part of Kubernetes. What a shell runs is
// taken apart: "sh -c 'exec kubelet …'" is the kubelet's command.
func Commands(host FS) []Command {
	var found []Command
	for _, name := range unitNames(host) {
		if u, ok := loadUnit(host, name); ok {
			found = append(found, u.commands(host)...)
		}
	}
	found = append(found, openRCCommands(host)...)
	found = append(found, supervisedCommands(host)...)
	var out []Command
	for _, c := range found {
		out = append(out, unwrap(host, c, 0)...)
	}
	return out
}

// Unwrap takes one command line apart as Commands does.
func Unwrap(host FS, argv []string, env map[string]string) [][]string {
	var out [][]string
	for _, c := range unwrap(host, Command{Argv: argv, Env: env}, 0) {
		out = append(out, c.Argv)
	}
	return out
}

var shells = []string{"sh", "bash", "dash", "ash", "ksh", "zsh", "busybox"}

// unwrap replaces a shell by what it runs, as far as its script tells.
func unwrap(host FS, c Command, depth int) []Command {
	if len(c.Argv) == 0 {
		return nil
	}
	if depth >= maxSource {
		return []Command{c}
	}
	script, from, ok := scriptOf(host, c)
	if !ok {
		return []Command{c}
	}
	sh := newShell(host, c.Env)
	sh.run(script)
	var out []Command
	for _, argv := range sh.commands {
		out = append(out, unwrap(host, Command{Service: c.Service, Path: cmp.Or(from, c.Path), Argv: argv, Env: sh.env}, depth+1)...)
	}
	return out
}

// scriptOf gives the script that a command makes a shell run: behind -c, or a
// file.
func scriptOf(host FS, c Command) (script, from string, ok bool) {
	args := c.Argv
	if base := path.Base(args[0]); slices.Contains(shells, base) {
		if args = args[1:]; base == "busybox" && len(args) > 0 {
			args = args[1:]
		}
		for i, a := range args {
			if !strings.HasPrefix(a, "-") {
				args = args[i:]
				break
			}
			if !strings.HasPrefix(a, "--") && strings.Contains(a, "c") && i+1 < len(args) {
				rest := args[i+1:]
				for len(rest) > 1 && strings.HasPrefix(rest[0], "-") {
					rest = rest[1:]
				}
				return rest[0], "", true
			}
			if i+1 == len(args) {
				return "", "", false
			}
		}
	}
	if len(args) == 0 || !strings.HasSuffix(args[0], ".sh") && len(args) == len(c.Argv) {
		return "", "", false
	}
	b, err := host.ReadFile(args[0])
	if err != nil || strings.IndexByte(string(b[:min(len(b), 512)]), 0) >= 0 {
		return "", "", false
	}
	return string(b), args[0], true
}

// programNames are the names by which images and hyperkube know a program.
var programNames = map[string][]string{
	"kube-apiserver": {"kube-apiserver", "apiserver"},
	"kubelet":        {"kubelet"},
}

// Program gives the arguments of a program that a command line runs, itself or
// by another one: go-runner, nice, hyperkube, docker run. It reports false for
// a command line that does not run it.
func Program(argv []string, name string) (Flags, bool) {
	names := programNames[name]
	if names == nil {
		names = []string{name}
	}
	for i, a := range argv {
		if i > 0 && strings.HasPrefix(a, "-") {
			continue
		}
		base := path.Base(a)
		base, _, _ = strings.Cut(base, "@sha256:")
		base, _, _ = strings.Cut(base, ":")
		match := base == name || slices.Contains(names, base) && i > 0 && strings.HasPrefix(path.Base(argv[i-1]), "hyperkube")
		if match {
			return Flags(argv[i+1:]), true
		}
	}
	return nil, false
}
