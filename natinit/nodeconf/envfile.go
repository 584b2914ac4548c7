package nodeconf

import "strings"

// parseEnvFile reads a file that a unit names by EnvironmentFile=
// (systemd.exec(5)): NAME=value, comments with # or ;, single and double
// quotes, a backslash at the end of a line continues it. What is no variable
// name ("export A=b") is ignored, as systemd does. The later of two lines with
// the same name counts.
func parseEnvFile(text string, into map[string]string) {
	text = strings.TrimPrefix(strings.ReplaceAll(text, "\r\n", "\n"), "\uFEFF")
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case c == '#' || c == ';':
			i = skipComment(text, i)
		default:
			end := strings.IndexAny(text[i:], "=\n")
			if end < 0 {
				return
			}
			if text[i+end] == '\n' {
				i += end + 1
				continue
			}
			key := strings.TrimSpace(text[i : i+end])
			var value string
			value, i = envValue(text, i+end+1)
			if isVariable(key) {
				into[key] = value
			}
		}
	}
}

// ParseEnv reads an environment file as systemd does.
func ParseEnv(text string) map[string]string {
	env := map[string]string{}
	parseEnvFile(text, env)
	return env
}

// skipComment goes to the end of a comment; a backslash continues it too.
func skipComment(text string, i int) int {
	for i < len(text) && text[i] != '\n' {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		i++
	}
	return min(i+1, len(text))
}

// envValue reads a value up to the end of its line, and gives where it ends.
func envValue(text string, i int) (string, int) {
	var out strings.Builder
	keep := 0 // blanks at the end of an unquoted value do not count
	for i < len(text) && (text[i] == ' ' || text[i] == '\t') {
		i++
	}
	for i < len(text) {
		switch c := text[i]; c {
		case '\n':
			return out.String()[:keep], i + 1
		case '\\':
			if i++; i < len(text) && text[i] != '\n' {
				out.WriteByte(text[i])
			}
			keep = out.Len()
		case '\'', '"':
			i = quotedValue(text, i, &out)
			keep = out.Len()
			continue
		default:
			out.WriteByte(c)
			if c != ' ' && c != '\t' {
				keep = out.Len()
			}
		}
		i++
	}
	return out.String()[:keep], i
}

// quotedValue reads a quoted part that begins at i. Within double quotes a
// backslash escapes only itself, the quote, $, ` and the end of the line.
func quotedValue(text string, i int, out *strings.Builder) int {
	quote := text[i]
	for i++; i < len(text) && text[i] != quote; i++ {
		if text[i] == '\\' && quote == '"' && i+1 < len(text) {
			i++
			if text[i] == '\n' {
				continue
			}
			if !strings.ContainsRune("\"\\`$", rune(text[i])) {
				out.WriteByte('\\')
			}
		}
		out.WriteByte(text[i])
	}
	return min(i+1, len(text))
}

func isVariable(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
