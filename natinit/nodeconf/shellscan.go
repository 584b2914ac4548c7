package nodeconf

import "strings"

// shellToken is a word with its quotes still on, or an operator.
type shellToken struct {
	text     string
	operator bool
}

// scanShell cuts a script into words and operators. Comments and continued
// lines go; here-documents are not known.
func scanShell(s string) []shellToken {
	var out []shellToken
	start := -1
	end := func(i int) {
		if start >= 0 {
			out = append(out, shellToken{s[start:i], false})
			start = -1
		}
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			if s[i+1] == '\n' {
				if start < 0 { // between words
					i += 2
					continue
				}
			} else if start < 0 {
				start = i
			}
			i += 2
			continue
		case c == '\'' || c == '"' || c == '`' || c == '$':
			if start < 0 {
				start = i
			}
			i = skipQuoted(s, i)
			continue
		case c == ' ' || c == '\t' || c == '\r':
			end(i)
		case c == '#' && start < 0:
			for i < len(s) && s[i] != '\n' {
				i++
			}
			continue
		case strings.IndexByte("\n;&|()<>", c) >= 0:
			if (c == '<' || c == '>') && start >= 0 && strings.Trim(s[start:i], "0123456789") == "" {
				start = -1 // the number of a file descriptor
			}
			end(i)
			n := 1
			for i+n < len(s) && c != '\n' && c != '(' && c != ')' && strings.IndexByte(";&|<>", s[i+n]) >= 0 {
				n++
			}
			out = append(out, shellToken{s[i : i+n], true})
			i += n
			continue
		default:
			if start < 0 {
				start = i
			}
		}
		i++
	}
	end(len(s))
	return out
}

// skipQuoted gives the end of what begins at i: a quoted part, or a dollar with
// its braces or parentheses.
func skipQuoted(s string, i int) int {
	switch s[i] {
	case '\'':
		if end := strings.IndexByte(s[i+1:], '\''); end >= 0 {
			return i + end + 2
		}
		return len(s)
	case '$':
		if i+1 < len(s) && (s[i+1] == '{' || s[i+1] == '(') {
			return skipNested(s, i+1)
		}
		return i + 1
	}
	quote := s[i]
	for i++; i < len(s); {
		switch {
		case s[i] == '\\':
			i += 2
		case s[i] == quote:
			return i + 1
		case s[i] == '$' && i+1 < len(s) && (s[i+1] == '{' || s[i+1] == '('):
			i = skipNested(s, i+1)
		default:
			i++
		}
	}
	return len(s)
}

// skipNested gives the end of ${…} or $(…), whose bracket is at i.
func skipNested(s string, i int) int {
	open, closing := s[i], byte('}')
	if open == '(' {
		closing = ')'
	}
	depth := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case open:
			depth++
		case closing:
			if depth--; depth == 0 {
				return i + 1
			}
		case '\\':
			i++
		case '\'':
			if end := strings.IndexByte(s[i+1:], '\''); end >= 0 {
				i += end + 1
			}
		}
	}
	return len(s)
}
