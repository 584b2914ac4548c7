// Package unitfile reads unit files as systemd reads them: sections and assignments, and the words of a value. What they
// mean is for those who read them. docs/decisions/0016 says why it is no library's.
package unitfile

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Setting is one assignment of a unit file.
type Setting struct {
	Section, Key, Value string
}

// Parse reads a unit file under the rules of systemd.syntax(7): comments
// start with # or ;, a backslash at the end of a line continues it and becomes
// a blank, comments inside of a continued line are ignored, blanks around the
// equals sign do not count. Lines that are no assignment are left out, as
// systemd does.
func Parse(text string) []Setting {
	var out []Setting
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

func addSetting(out []Setting, section, line string) ([]Setting, string) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "[") {
		if name, ok := strings.CutSuffix(line[1:], "]"); ok {
			section = name
		}
		return out, section
	}
	if key, value, ok := strings.Cut(line, "="); ok {
		out = append(out, Setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return out, section
}

// Words splits a value of a unit file into words, as ExecStart= and
// Environment= do (systemd.syntax(7), "Quoting"): blanks separate, quotes of
// both kinds group and may stand anywhere in a word, C escapes work inside of
// either. An unknown escape stays as it is.
func Words(s string) []string {
	var out []string
	var word strings.Builder
	inWord := false
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			n := unescape(s[i+1:], &word)
			i += n
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if inWord {
				out = append(out, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		out = append(out, word.String())
	}
	return out
}

// unescape writes what an escape stands for and gives its length behind the
// backslash.
func unescape(s string, out *strings.Builder) int {
	const simple = "a\ab\bf\fn\nr\rt\tv\v\\\\\"\"''s "
	for i := 0; i < len(simple); i += 2 {
		if s[0] == simple[i] {
			out.WriteByte(simple[i+1])
			return 1
		}
	}
	number := func(digits, base, bits int) int {
		from := 1
		if base == 8 {
			from = 0
		}
		if len(s) < from+digits {
			return 0
		}
		n, err := strconv.ParseUint(s[from:from+digits], base, bits)
		if err != nil || n == 0 {
			return 0
		}
		if bits > 8 {
			out.WriteString(string(utf8.AppendRune(nil, rune(n))))
		} else {
			out.WriteByte(byte(n))
		}
		return from + digits
	}
	n := 0
	switch c := s[0]; {
	case c == 'x':
		n = number(2, 16, 8)
	case c == 'u':
		n = number(4, 16, 16)
	case c == 'U':
		n = number(8, 16, 32)
	case c >= '0' && c <= '3':
		n = number(3, 8, 8)
	}
	if n == 0 {
		out.WriteByte('\\')
		out.WriteByte(s[0])
		return 1
	}
	return n
}
