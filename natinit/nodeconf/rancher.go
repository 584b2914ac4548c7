package nodeconf

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Rancher is how k3s or RKE2 is started on a node.
type Rancher struct {
	// Service is the name of the service, "" where none is known.
	Service string
	// Path is the file of the command, "" where none is known and only the
	// configuration file speaks.
	Path string
	// Server and Agent: which of the two it runs as; neither if not known.
	Server, Agent bool
	// Flags are the values of the configuration files, then those of the command
	// line, as the product itself strings them together.
	Flags Flags
	// Files are the configuration files that were read.
	Files []string
	// Problems are sentences about files that cannot be read.
	Problems []string
	env      map[string]string
	product  string
}

// Value gives a setting that has one value: of the flags the last one counts,
// and only without any the environment (K3S_URL).
func (r *Rancher) Value(variable string, names ...string) string {
	if v, ok := r.Flags.Last(names...); ok && v != "" {
		return v
	}
	if variable == "" {
		return ""
	}
	return strings.TrimSpace(r.env[strings.ToUpper(r.product)+"_"+variable])
}

// List gives a setting that has several values: all of them, and each may be a
// list with commas.
func (r *Rancher) List(names ...string) []string {
	var out []string
	for _, v := range r.Flags.All(names...) {
		for part := range strings.SplitSeq(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// RancherCommands finds how a product ("k3s", "rke2") is started: an entry for
// each service that runs it, or one for its configuration file alone where no
// service is known. commands are those of the host.
func RancherCommands(host FS, product string, commands []Command) []Rancher {
	var out []Rancher
	for _, c := range commands {
		args, ok := Program(c.Argv, product)
		if !ok || len(args) == 0 || args[0] != "server" && args[0] != "agent" {
			continue
		}
		r := Rancher{Service: c.Service, Path: c.Path, Server: args[0] == "server", Agent: args[0] == "agent", env: c.Env, product: product}
		r.read(host, args[1:])
		out = append(out, r)
	}
	if len(out) == 0 {
		r := Rancher{env: map[string]string{}, product: product}
		r.strayEnvironment(host)
		r.read(host, nil)
		out = append(out, r)
	}
	return out
}

// strayEnvironment reads the environment files that installers leave beside a
// unit, for a node whose unit is not found.
func (r *Rancher) strayEnvironment(host FS) {
	for _, p := range []string{
		"/etc/default/", "/etc/sysconfig/", "/usr/local/lib/systemd/system/", "/etc/systemd/system/", "/etc/rancher/" + r.product + "/",
	} {
		for _, pattern := range []string{r.product + "*.env", r.product, r.product + "-agent", r.product + "-server"} {
			for _, file := range host.Glob(p + pattern) {
				if b, err := host.ReadFile(file); err == nil {
					before := r.Value("URL", "server")
					parseEnvFile(string(b), r.env)
					if r.Path == "" && before == "" && r.Value("URL", "server") != "" {
						r.Path = file
					}
				}
			}
		}
	}
}

// read strings configuration files and arguments together: an environment
// variable names the file, else --config or -c, else it is the default one.
func (r *Rancher) read(host FS, args Flags) {
	file := "/etc/rancher/" + r.product + "/config.yaml"
	if f := r.env[strings.ToUpper(r.product)+"_CONFIG_FILE"]; f != "" {
		file = f
	} else if all := args.All("config", "c"); len(all) > 0 {
		file = all[0] // the product looks for the first one
	}
	files := []string{file}
	for _, p := range host.Glob(file + ".d/*") {
		switch strings.ToLower(path.Ext(p)) {
		case ".yaml", ".yml":
			files = append(files, p)
		}
	}
	values := rancherValues{}
	for _, p := range files {
		b, err := host.ReadFile(p)
		if err != nil {
			continue
		}
		r.Files = append(r.Files, p)
		if err := values.add(b); err != nil {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: not readable: %v", p, err))
		}
	}
	r.Flags = append(values.flags(), args...)
}

// rancherValues are the keys of the configuration files in the order in which
// they first come.
type rancherValues map[string][]string

// add reads one file. A key replaces what earlier files say; with a plus sign
// at its end it appends.
func (v rancherValues) add(b []byte) error {
	var file map[string]any
	if err := yaml.Unmarshal(b, &file, asWritten); err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return fmt.Errorf("%s", text)
	}
	// A file may have a key both ways; the plain one comes first in most.
	keys := make([]string, 0, len(file))
	for k := range file {
		keys = append(keys, k)
	}
	slices.Sort(keys) // "a" sorts before "a+"
	for _, k := range keys {
		name, appends := strings.CutSuffix(k, "+")
		if appends {
			v[name] = append(slices.Clone(v[name]), texts(file[k])...)
		} else {
			v[name] = texts(file[k])
		}
	}
	return nil
}

// asWritten keeps numbers as they are written: 7443 must not become 7443.0.
func asWritten(d *json.Decoder) *json.Decoder {
	d.UseNumber()
	return d
}

// texts gives a scalar or a list as the product turns it into flags.
func texts(value any) []string {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var out []string
	for _, x := range list {
		switch x := x.(type) {
		case nil:
			out = append(out, "")
		case string:
			out = append(out, x)
		case bool:
			out = append(out, strconv.FormatBool(x))
		default:
			out = append(out, fmt.Sprint(x))
		}
	}
	return out
}

// flags turns the keys into --key=value; a key of one letter has one dash.
func (v rancherValues) flags() Flags {
	keys := make([]string, 0, len(v))
	for k := range v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out Flags
	for _, k := range keys {
		dash := "--"
		if len(k) == 1 {
			dash = "-"
		}
		for _, value := range v[k] {
			out = append(out, dash+k+"="+value)
		}
	}
	return out
}
