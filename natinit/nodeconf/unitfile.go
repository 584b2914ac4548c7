package nodeconf

import "strings"

// setting is one assignment of a unit file.
type setting struct {
	section, key, value string
}

// parseUnit reads a unit file under the rules of systemd.syntax(7): comments
// start with # or ;, a backslash at the end of a line continues it and becomes
// a blank, comments inside of a continued line are ignored, blanks around the
// equals sign do not count. Lines that are no assignment are left out, as
// systemd does.
func parseUnit(text string) []setting {
	var out []setting
	section := ""
	var pending strings.Builder // a line that continues
	continued := false
	text = strings.TrimPrefix(text, "\uFEFF")
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		trimmed := strings.TrimLeft(line, " \t")
		if trimmed != "" && (trimmed[0] == '#' || trimmed[0] == ';') {
			continue // also inside of a continued line
		}
		if !continued {
			line = trimmed
		}
		body, more := cutContinuation(line)
		pending.WriteString(body)
		if continued = more; more {
			pending.WriteByte(' ')
			continue
		}
		out, section = addSetting(out, section, pending.String())
		pending.Reset()
	}
	if pending.Len() > 0 {
		out, _ = addSetting(out, section, pending.String())
	}
	return out
}

// cutContinuation takes the backslash off a line that ends in an odd number of
// them; an even number is escaped backslashes.
func cutContinuation(line string) (string, bool) {
	n := 0
	for n < len(line) && line[len(line)-1-n] == '\\' {
		n++
	}
	if n%2 == 0 {
		return line, false
	}
	return line[:len(line)-1], true
}

func addSetting(out []setting, section, line string) ([]setting, string) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "[") {
		if name, ok := strings.CutSuffix(line[1:], "]"); ok {
			section = name
		}
		return out, section
	}
	if key, value, ok := strings.Cut(line, "="); ok {
		out = append(out, setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return out, section
}
