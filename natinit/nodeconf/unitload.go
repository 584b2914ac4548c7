package nodeconf

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/units/unitfile"
)

// UnitDirs is where the system manager looks for units, the strongest first
// (systemd.unit(5), "Unit File Search Path"). Units of systemd-run are in
// /run/systemd/transient.
var UnitDirs = [...]string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early",
	"/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached", "/run/systemd/generator",
	"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/generator.late",
}

// ownDirs are the directories with few units, where an administrator or an
// installer puts one of any name. The others have hundreds, of packages, and
// only those are read whose name tells.
var ownDirs = [...]string{
	"/run/systemd/transient", "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
}

// telling are the parts of names of units that may start what this project
// looks for.
var telling = [...]string{"kube", "k3s", "rke2", "k0s", "k8s", "apiserver", "api-server"}

// unitNames lists the services whose units are worth reading.
func unitNames(host FS) []string {
	var out []string
	for _, dir := range UnitDirs {
		own := slices.Contains(ownDirs[:], dir)
		for _, p := range host.Glob(dir + "/*.service") {
			name := path.Base(p)
			tells := func(part string) bool { return strings.Contains(strings.TrimSuffix(name, ".service"), part) }
			if (own || slices.ContainsFunc(telling[:], tells)) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// unit is a service with everything that its drop-ins change.
type unit struct {
	name     string // with the suffix
	path     string // the unit file, or the last drop-in that sets ExecStart=
	exec     []string
	env      []string // values of Environment=
	envFiles []string // values of EnvironmentFile=
	unset    []string
}

// loadUnit reads a unit: the strongest file of its name, then the drop-ins. It
// reports false for one that is not there or is masked.
func loadUnit(host FS, name string) (unit, bool) {
	u := unit{name: name}
	found := false
	for _, at := range unitFileNames(name) {
		for _, dir := range UnitDirs {
			text, there, masked := readUnit(host, path.Join(dir, at))
			if masked {
				return u, false
			}
			if there {
				u.apply(path.Join(dir, at), text)
				found = true
				break
			}
		}
		if found {
			break
		}
	}
	if !found {
		return u, false
	}
	for _, p := range dropIns(host, name) {
		if text, there, _ := readUnit(host, p); there {
			u.apply(p, text)
		}
	}
	return u, true
}

// unitFileNames are a unit's own name and, for an instance, its template's.
func unitFileNames(name string) []string {
	if prefix, rest, ok := strings.Cut(name, "@"); ok && rest != ".service" {
		return []string{name, prefix + "@.service"}
	}
	return []string{name}
}

// readUnit reads one file. An empty one masks, as does a link to /dev/null,
// which is not a regular file.
func readUnit(host FS, p string) (text string, there, masked bool) {
	b, err := host.ReadFile(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// A link to /dev/null below a root that has none is listed all the same.
		return "", false, len(host.Glob(p)) > 0
	case err != nil, len(b) == 0:
		return "", false, true
	}
	return string(b), true, false
}

// dropIns lists the drop-ins of a unit in the order in which they count: by
// file name, whatever their directory. Of two with the same name the one for
// the more special name and in the stronger directory counts alone.
func dropIns(host FS, name string) []string {
	base := strings.TrimSuffix(name, ".service")
	dirs := []string{name + ".d"}
	if prefix, rest, ok := strings.Cut(base, "@"); ok && rest != "" {
		dirs = append(dirs, prefix+"@.service.d")
	}
	for i := len(base) - 1; i > 0; i-- {
		if base[i] == '-' {
			dirs = append(dirs, base[:i+1]+".service.d")
		}
	}
	dirs = append(dirs, "service.d")
	byName := map[string]string{}
	var names []string
	for _, d := range dirs {
		for _, at := range UnitDirs {
			for _, p := range host.Glob(path.Join(at, d) + "/*.conf") {
				file := path.Base(p)
				if _, have := byName[file]; !have {
					byName[file] = p
					names = append(names, file)
				}
			}
		}
	}
	slices.Sort(names)
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = byName[n]
	}
	return out
}

// apply adds the settings of a file. An empty assignment resets a list.
func (u *unit) apply(p, text string) {
	for _, s := range unitfile.Parse(text) {
		if s.Section != "Service" {
			continue
		}
		var list *[]string
		switch s.Key {
		case "ExecStart":
			list, u.path = &u.exec, p
		case "Environment":
			list = &u.env
		case "EnvironmentFile":
			list = &u.envFiles
		case "UnsetEnvironment":
			list = &u.unset
		default:
			continue
		}
		if s.Value == "" {
			*list = nil
			continue
		}
		*list = append(*list, s.Value)
	}
}

// environment is what the unit sets: Environment= first, then the files, which
// win (systemd.exec(5)).
func (u *unit) environment(host FS, expand specifiers) map[string]string {
	env := map[string]string{}
	for _, line := range u.env {
		for _, w := range unitfile.Words(line) {
			if name, value, ok := strings.Cut(expand.in(w), "="); ok && isVariable(name) {
				env[name] = value
			}
		}
	}
	for _, line := range u.envFiles {
		pattern := expand.in(strings.TrimPrefix(line, "-"))
		for _, p := range host.Glob(pattern) {
			if b, err := host.ReadFile(p); err == nil {
				parseEnvFile(string(b), env)
			}
		}
	}
	for _, line := range u.unset {
		for _, w := range unitfile.Words(line) {
			name, value, pair := strings.Cut(expand.in(w), "=")
			if !pair || env[name] == value {
				delete(env, name)
			}
		}
	}
	return env
}

// commands are the unit's command lines.
func (u *unit) commands(host FS) []Command {
	expand := newSpecifiers(host, u.name)
	env := u.environment(host, expand)
	var out []Command
	for _, line := range u.exec {
		for _, argv := range execCommands(line, expand, env) {
			out = append(out, Command{Service: strings.TrimSuffix(u.name, ".service"), Path: u.path, Argv: argv, Env: env})
		}
	}
	return out
}
