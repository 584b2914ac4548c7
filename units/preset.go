package units

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// presetPath is the order of systemd.preset(5): a file name in an earlier
// directory hides the same name in a later one.
var presetPath = []string{"/etc/systemd/system-preset", "/run/systemd/system-preset", "/usr/local/lib/systemd/system-preset", "/usr/lib/systemd/system-preset", "/lib/systemd/system-preset"}

// preset notes when the distribution's presets would disable the unit: they
// are applied to a cloned image at its first boot (/etc/machine-id empty) by
// systemd built with first-boot-full-preset, and by systemctl preset-all.
func (p *planner) preset(name string) {
	where := map[string]string{}
	for _, dir := range presetPath {
		for _, f := range p.t.names(dir) {
			if _, hidden := where[f]; !hidden && strings.HasSuffix(f, ".preset") {
				where[f] = path.Join(dir, f)
			}
		}
	}
	files := make([]string, 0, len(where))
	for f := range where {
		files = append(files, f)
	}
	slices.Sort(files)
	for _, f := range files {
		n, err := p.t.look(where[f])
		if err != nil {
			continue
		}
		switch presetVerdict(n.data, name) {
		case "disable":
			p.note("%s disables %s on systemctl preset-all, and on the first boot of an image made of this host", where[f], name)
			return
		case "enable":
			return
		}
	}
}

// presetVerdict returns what the first line of a preset file that matches the
// unit says: "enable", "disable", or "" for no match.
func presetVerdict(data []byte, name string) string {
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "enable" && f[0] != "disable" {
			continue
		}
		if ok, err := path.Match(f[1], name); err == nil && ok {
			return f[0]
		}
	}
	return ""
}
