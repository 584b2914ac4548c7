package nodeconf

import "strings"

// Flags are the arguments of a program.
type Flags []string

// Last gives the value of a flag that may have several names; the last one
// counts. An underscore is the same as a dash, as Kubernetes' programs have it.
func (f Flags) Last(names ...string) (string, bool) {
	all := f.All(names...)
	if len(all) == 0 {
		return "", false
	}
	return all[len(all)-1], true
}

// All gives every value of a flag: --name=value, --name value, and the same
// with one dash. Names of one letter are short flags, with the value behind
// them, behind an equals sign, or glued on (-d/srv). What follows a lone -- is
// no flag.
func (f Flags) All(names ...string) []string {
	var out []string
	for i := 0; i < len(f); i++ {
		if f[i] == "--" {
			break
		}
		for _, name := range names {
			value, separate, ok := flagOf(f[i], name)
			if !ok {
				continue
			}
			if separate {
				if i+1 == len(f) || strings.HasPrefix(f[i+1], "--") {
					break // without a value
				}
				i++
				value = f[i]
			}
			out = append(out, strings.TrimSpace(value))
			break
		}
	}
	return out
}

// flagOf takes one argument apart. separate: the value is the next argument.
func flagOf(arg, name string) (value string, separate, ok bool) {
	body, ok := strings.CutPrefix(arg, "-")
	if !ok || body == "" {
		return "", false, false
	}
	body = strings.TrimPrefix(body, "-")
	key, value, equals := strings.Cut(body, "=")
	switch {
	case strings.ReplaceAll(key, "_", "-") == name:
		return value, !equals, true
	case len(name) == 1 && !strings.HasPrefix(arg, "--") && len(body) > 1 && body[:1] == name && strings.IndexByte("/:.0123456789h", body[1]) >= 0:
		return body[1:], false, true
	}
	return "", false, false
}

// Bool reports whether a flag without a value is given and not false.
func (f Flags) Bool(name string) bool {
	on := false
	for _, a := range f {
		if a == "--" {
			break
		}
		if value, separate, ok := flagOf(a, name); ok {
			on = separate || isTrue(value)
		}
	}
	return on
}

// isTrue reads a boolean as Go's flags do.
func isTrue(s string) bool {
	switch s {
	case "1", "t", "T", "true", "TRUE", "True":
		return true
	}
	return false
}
