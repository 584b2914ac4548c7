package nodeconf

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// splitUnit splits a value of a unit file into words, as ExecStart= and
// Environment= do (systemd.syntax(7), "Quoting"): blanks separate, quotes of
// both kinds group and may stand anywhere in a word, C escapes work inside of
// either. An unknown escape stays as it is.
func splitUnit(s string) []string {
	var out []string
	var word strings.Builder
	inWord := false
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			n := cUnescape(s[i+1:], &word)
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

// cUnescape writes what an escape stands for and gives its length behind the
// backslash.
func cUnescape(s string, out *strings.Builder) int {
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

// execCommands turns a value of ExecStart= into argument lists: one, or several
// that a lone semicolon separates. Prefixes (@ - : + ! |) are taken off.
func execCommands(value string, expand specifiers, env map[string]string) [][]string {
	var out [][]string
	words := splitUnit(value)
	for len(words) > 0 {
		n := 0
		for n < len(words) && words[n] != ";" {
			n++
		}
		if argv := execArgv(words[:n], expand, env); len(argv) > 0 {
			out = append(out, argv)
		}
		words = words[min(n+1, len(words)):]
	}
	return out
}

func execArgv(words []string, expand specifiers, env map[string]string) []string {
	if len(words) == 0 {
		return nil
	}
	path := strings.TrimLeft(words[0], "@-:+!|")
	prefix := words[0][:len(words[0])-len(path)]
	rest := words[1:]
	if strings.Contains(prefix, "@") && len(rest) > 0 {
		rest = rest[1:] // what the process is to see as its own name
	}
	argv := []string{expand.in(path)}
	for _, w := range rest {
		w = expand.in(strings.Replace(w, `\;`, ";", 1))
		if strings.Contains(prefix, ":") {
			argv = append(argv, w)
			continue
		}
		argv = append(argv, expandWord(w, env)...)
	}
	return argv
}

// expandWord replaces variables: a word that is $NAME becomes as many words as
// the value has, ${NAME} anywhere becomes the value as it is, $$ a dollar
// (systemd.service(5), "Command lines").
func expandWord(w string, env map[string]string) []string {
	if name, ok := strings.CutPrefix(w, "$"); ok && isVariable(name) {
		return splitUnit(env[name])
	}
	if !strings.Contains(w, "$") {
		return []string{w}
	}
	var out strings.Builder
	for i := 0; i < len(w); i++ {
		if w[i] != '$' || i+1 == len(w) {
			out.WriteByte(w[i])
			continue
		}
		if w[i+1] == '$' {
			out.WriteByte('$')
			i++
			continue
		}
		if end := strings.IndexByte(w[i:], '}'); w[i+1] == '{' && end > 0 {
			name, rest, alternative := w[i+2:i+end], "", byte(0)
			if j := strings.IndexByte(name, ':'); j >= 0 && j+1 < len(name) {
				name, alternative, rest = name[:j], name[j+1], name[j+2:]
			}
			if isVariable(name) {
				out.WriteString(alternativeValue(env[name], alternative, rest))
				i += end
				continue
			}
		}
		out.WriteByte('$')
	}
	return []string{out.String()}
}

// alternativeValue is ${NAME:-word} and ${NAME:+word}.
func alternativeValue(value string, operator byte, word string) string {
	switch {
	case operator == '-' && value == "":
		return word
	case operator == '+' && value != "":
		return word
	case operator == '+':
		return ""
	}
	return value
}
