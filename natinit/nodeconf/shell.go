package nodeconf

import (
	"slices"
	"strings"
)

// shell evaluates what the scripts of services have outside of functions:
// assignments, other files that they source, and simple commands. Conditions
// are taken to be true, command substitutions to be empty, and nothing runs.
type shell struct {
	host     FS
	env      map[string]string
	commands [][]string
	depth    int
}

// maxSource bounds how deep files may source each other.
const maxSource = 4

// maxValue bounds a variable; what the kernel lets a program have is shorter.
const maxValue = 1 << 17

// run evaluates a script.
func (sh *shell) run(script string) {
	var words []string
	tokens := scanShell(script)
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		switch {
		case t.operator && (t.text[0] == '>' || t.text[0] == '<'):
			i++ // and what it redirects to
		case t.operator && t.text == "(" && len(words) == 1 && i+1 < len(tokens) && tokens[i+1].text == ")":
			i = skipFunction(tokens, i+2)
			words = nil
		case t.operator:
			sh.command(words)
			words = nil
		default:
			words = append(words, t.text)
		}
	}
	sh.command(words)
}

// skipFunction gives the last token of a function's body, { … }.
func skipFunction(tokens []shellToken, i int) int {
	depth := 0
	for ; i < len(tokens); i++ {
		switch t := tokens[i]; {
		case t.operator:
		case t.text == "{":
			depth++
		case t.text == "}":
			depth--
			if depth == 0 {
				return i
			}
		case depth == 0:
			return i - 1 // not braces
		}
	}
	return i
}

// keywords stand before a command; those of conditions make one of it that
// assigns nothing.
var keywords = []string{"then", "do", "else", "{", "!", "if", "elif", "while", "until", "exec", "export", "readonly", "local", "nohup", "eval"}

func (sh *shell) command(raw []string) {
	for len(raw) > 0 && slices.Contains(keywords, raw[0]) {
		raw = raw[1:]
	}
	n := 0
	for n < len(raw) {
		name, value, ok := strings.Cut(raw[n], "=")
		appends := strings.HasSuffix(name, "+")
		if name = strings.TrimSuffix(name, "+"); !ok || !isVariable(name) {
			break
		}
		value = sh.unquote(value)
		if appends {
			value = sh.env[name] + value
		}
		if len(value) > maxValue { // a=$a$a, again and again
			value = ""
		}
		sh.env[name] = value
		n++
	}
	if n == len(raw) {
		return
	}
	for raw = raw[n:]; len(raw) > 0 && slices.Contains(keywords, raw[0]); {
		raw = raw[1:]
	}
	var words []string
	for _, w := range raw {
		words = append(words, sh.expand(w)...)
	}
	if len(words) == 2 && (words[0] == "." || words[0] == "source") {
		sh.source(words[1])
		return
	}
	if len(words) > 0 {
		sh.commands = append(sh.commands, words)
	}
}

func (sh *shell) source(path string) {
	if sh.depth >= maxSource {
		return
	}
	if b, err := sh.host.ReadFile(path); err == nil {
		sh.depth++
		sh.run(string(b))
		sh.depth--
	}
}

// unquote expands a word without splitting it, as in an assignment.
func (sh *shell) unquote(w string) string {
	return strings.Join(sh.fields(w, false), "")
}

// expand expands a word and splits what unquoted variables give.
func (sh *shell) expand(w string) []string { return sh.fields(w, true) }

func (sh *shell) fields(w string, split bool) []string {
	var out []string
	var field strings.Builder
	there := false // an empty field counts if it was quoted
	flush := func() {
		if there || field.Len() > 0 {
			out = append(out, field.String())
		}
		field.Reset()
		there = false
	}
	unquoted := func(value string) {
		for i, part := range splitKeep(value, split) {
			if i > 0 {
				flush()
			}
			field.WriteString(part)
		}
	}
	for i := 0; i < len(w); {
		switch c := w[i]; c {
		case '\\':
			if i+1 < len(w) && w[i+1] != '\n' {
				field.WriteByte(w[i+1])
			}
			i += 2
		case '\'':
			end := skipQuoted(w, i)
			field.WriteString(strings.TrimSuffix(w[i+1:end], "'"))
			there, i = true, end
		case '"':
			end := skipQuoted(w, i)
			sh.doubleQuoted(strings.TrimSuffix(w[i+1:min(end, len(w))], `"`), &field)
			there, i = true, end
		case '`':
			i = skipQuoted(w, i)
		case '$':
			value, end := sh.variable(w, i)
			unquoted(value)
			i = end
		default:
			field.WriteByte(c)
			i++
		}
	}
	flush()
	return out
}

// splitKeep splits at blanks; the first and the last part are "" where blanks
// are at the ends, so that they separate from what stands beside.
func splitKeep(value string, split bool) []string {
	if !split {
		return []string{value}
	}
	parts := strings.Fields(value)
	if strings.TrimLeft(value, " \t\n") != value {
		parts = append([]string{""}, parts...)
	}
	if strings.TrimRight(value, " \t\n") != value {
		parts = append(parts, "")
	}
	return parts
}

func (sh *shell) doubleQuoted(s string, out *strings.Builder) {
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			switch {
			case s[i+1] == '\n':
			case strings.IndexByte("$`\"\\", s[i+1]) >= 0:
				out.WriteByte(s[i+1])
			default:
				out.WriteString(s[i : i+2])
			}
			i += 2
		case c == '`':
			i = skipQuoted(s, i)
		case c == '$':
			value, end := sh.variable(s, i)
			out.WriteString(value)
			i = end
		default:
			out.WriteByte(c)
			i++
		}
	}
}

// variable gives the value of what begins with the dollar at i, and its end.
func (sh *shell) variable(s string, i int) (string, int) {
	rest := s[i+1:]
	switch {
	case rest == "":
		return "$", len(s)
	case rest[0] == '(':
		return "", skipNested(s, i+1)
	case rest[0] == '{':
		end := skipNested(s, i+1)
		return sh.braced(strings.TrimSuffix(s[i+2:end], "}")), end
	}
	n := 0
	for n < len(rest) && isVariable(rest[:n+1]) {
		n++
	}
	if n > 0 {
		return sh.env[rest[:n]], i + 1 + n
	}
	if strings.IndexByte("@*#?!-$0123456789", rest[0]) >= 0 {
		return "", i + 2
	}
	return "$", i + 1
}

// braced evaluates NAME, NAME:-word, NAME-word, NAME:=word, NAME:+word.
func (sh *shell) braced(s string) string {
	n := 0
	for n < len(s) && isVariable(s[:n+1]) {
		n++
	}
	name, operator := s[:n], strings.TrimPrefix(s[n:], ":")
	value, set := sh.env[name]
	missing := !set || value == "" && strings.HasPrefix(s[n:], ":")
	if operator == "" || name == "" {
		return value
	}
	switch word := sh.unquoteDefault(operator[1:]); operator[0] {
	case '-':
		if missing {
			return word
		}
	case '=':
		if missing {
			sh.env[name] = word
			return word
		}
	case '+':
		if missing {
			return ""
		}
		return word
	}
	return value
}

// unquoteDefault expands the word of a default, which may have variables and
// quotes of its own.
func (sh *shell) unquoteDefault(w string) string {
	if sh.depth >= maxSource {
		return ""
	}
	sh.depth++
	defer func() { sh.depth-- }()
	return sh.unquote(w)
}

// SplitArgs splits a file or text of arguments as a shell does, with variables
// from env: the args files of snaps, a command line in quotes.
func SplitArgs(host FS, text string, env map[string]string) []string {
	sh := &shell{host: host, env: map[string]string{}}
	for k, v := range env {
		sh.env[k] = v
	}
	var out []string
	skip := false
	for _, t := range scanShell(text) {
		switch {
		case t.operator:
			skip = t.text[0] == '>' || t.text[0] == '<'
			continue
		case !skip:
			out = append(out, sh.expand(t.text)...)
		}
		skip = false
	}
	return out
}
