package nodeconf

import (
	"cmp"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/unit"
)

// specifiers replaces what a unit file writes with a percent sign
// (systemd.unit(5), "Specifiers"), for a unit of the system manager.
type specifiers map[byte]string

func newSpecifiers(fs FS, service string) specifiers {
	name, _, _ := strings.Cut(service, ".service")
	prefix, instance, _ := strings.Cut(name, "@")
	last := prefix[strings.LastIndexByte(prefix, '-')+1:]
	s := specifiers{
		'%': "%", 'n': name + ".service", 'N': name, 'p': prefix, 'P': systemd.UnitNameUnescape(prefix), 'i': instance, 'I': systemd.UnitNameUnescape(instance),
		'j': last, 'J': systemd.UnitNameUnescape(last), 't': "/run", 'S': "/var/lib", 'C': "/var/cache", 'L': "/var/log", 'E': "/etc",
		'T': "/tmp", 'V': "/var/tmp", 'h': "/root", 's': "/bin/sh", 'u': "root", 'U': "0", 'g': "root", 'G': "0",
		'f': "/" + systemd.UnitNameUnescape(cmp.Or(instance, prefix)),
	}
	for c, file := range map[byte]string{'H': "/etc/hostname", 'm': "/etc/machine-id"} {
		if b, err := fs.ReadFile(file); err == nil {
			s[c] = strings.TrimSpace(string(b))
		}
	}
	if host, ok := s['H']; ok {
		s['l'], _, _ = strings.Cut(host, ".")
		s['q'] = s['l']
	}
	return s
}

// in replaces the specifiers of a word. One that is not known stays.
func (s specifiers) in(w string) string {
	if !strings.Contains(w, "%") {
		return w
	}
	var out strings.Builder
	for i := 0; i < len(w); i++ {
		if w[i] == '%' && i+1 < len(w) {
			if v, ok := s[w[i+1]]; ok {
				out.WriteString(v)
				i++
				continue
			}
		}
		out.WriteByte(w[i])
	}
	return out.String()
}
