package units

import (
	"fmt"
	"strings"
	"unicode"
)

// specifiers escapes what systemd would expand in any value (systemd.unit(5),
// "Specifiers").
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// quoteWord makes s one word of a unit file value that is split into words
// (systemd.syntax(7), "Quoting"): specifiers are doubled, and anything that is
// not plain is put into double quotes with C escapes.
func quoteWord(s string) string {
	s = specifiers(s)
	plain := func(r rune) bool {
		return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("-_./:,=@%+[]", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case unicode.IsControl(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// execLine is a command for ExecStart=: beside the quoting of words, $ is
// doubled, because systemd puts environment variables into arguments
// (systemd.service(5), "Command lines"). It does not in the program's path,
// where $ stays as it is. A lone ; would begin a second command, so it is quoted.
func execLine(program string, args []string) string {
	words := []string{quoteWord(program)}
	for _, a := range args {
		words = append(words, quoteWord(strings.ReplaceAll(a, "$", "$$")))
	}
	return strings.Join(words, " ")
}

// shellWord makes s one word of a POSIX shell command.
func shellWord(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
