package nodeconf

import (
	"strings"

	"github.com/firsthop/firsthop/units/unitfile"
)

// execCommands turns a value of ExecStart= into argument lists: one, or several
// that a lone semicolon separates. Prefixes (@ - : + ! |) are taken off.
func execCommands(value string, expand specifiers, env map[string]string) [][]string {
	var out [][]string
	words := unitfile.Words(value)
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
		return unitfile.Words(env[name])
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
