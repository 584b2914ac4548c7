package nodeconf

import (
	"path"
	"slices"
)

// tellingIn lists what is worth reading in a directory.
func tellingIn(host FS, dir string) []string {
	var out []string
	for _, part := range telling {
		out = append(out, host.Glob(dir+"/*"+part+"*")...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// openRCCommands reads the scripts of OpenRC: /etc/conf.d/NAME is sourced
// first, then /etc/init.d/NAME, whose command and command_args start the
// daemon. OpenRC evaluates command_args once more, so quotes and redirections
// in it count.
func openRCCommands(host FS) []Command {
	var out []Command
	for _, p := range tellingIn(host, "/etc/init.d") {
		name := path.Base(p)
		b, err := host.ReadFile(p)
		if err != nil {
			continue
		}
		sh := newShell(host, map[string]string{"RC_SVCNAME": name, "SVCNAME": name, "name": name})
		sh.source("/etc/rc.conf")
		sh.source("/etc/conf.d/" + name)
		sh.commands = nil
		sh.run(string(b))
		if command := sh.env["command"]; command != "" {
			argv := append(SplitArgs(host, command, sh.env), SplitArgs(host, sh.env["command_args"], sh.env)...)
			argv = append(argv, SplitArgs(host, sh.env["command_args_foreground"], sh.env)...)
			out = append(out, Command{Service: name, Path: p, Argv: argv, Env: sh.env})
			continue
		}
		for _, argv := range sh.commands { // a script of another kind
			out = append(out, Command{Service: name, Path: p, Argv: argv, Env: sh.env})
		}
	}
	return out
}

// supervisedCommands reads the run scripts of runit and s6.
func supervisedCommands(host FS) []Command {
	var out []Command
	for _, dir := range []string{"/etc/service", "/etc/sv", "/service", "/etc/s6/sv"} {
		for _, d := range tellingIn(host, dir) {
			name := path.Base(d)
			b, err := host.ReadFile(d + "/run")
			if err != nil {
				continue
			}
			sh := newShell(host, nil)
			sh.source(d + "/conf")
			sh.run(string(b))
			for _, argv := range sh.commands {
				out = append(out, Command{Service: name, Path: d + "/run", Argv: argv, Env: sh.env})
			}
		}
	}
	return out
}
