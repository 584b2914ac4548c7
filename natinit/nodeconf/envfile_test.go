package nodeconf

import (
	"testing"
)

func TestParseEnv(t *testing.T) {
	for sentence, tc := range map[string]struct{ text, want string }{
		"a plain value loses blanks at its ends":            {"A =  b c  \n", "b c"},
		"quotes of both kinds":                              {"A='b'\" c\"\n", "b c"},
		"double quotes go over lines that a backslash ends": {"A=\"--x \\\n--y \\\n--z\"\n", "--x --y --z"},
		"an unquoted line that a backslash ends":            {"A=--x \\\n--y\n", "--x --y"},
		"two backslashes, from a here-document that was written with quotes, stay one and break the line": {"A=\"--x \\\\\n--y\"\n", "--x \\\n--y"},
		"the later one counts":                          {"A=b\nA=c\n", "c"},
		"export is not known to systemd":                {"export A=b\n", ""},
		"a comment":                                     {"# A=b\n; A=c\nA=d\n", "d"},
		"a comment that a backslash continues":          {"# x \\\nA=b\nA=c\n", "c"},
		"an escape in double quotes":                    {`A="b\"c\n\$d"`, `b"c\n$d`},
		"no escape in single quotes":                    {`A='b\'` + "\nB=x\n", `b\`},
		"Windows' line ends":                            {"A=b\r\n", "b"},
		"no value":                                      {"A=\nB=c\n", ""},
		"a quote that is not closed ends with the file": {"A=\"b\nc", "b\nc"},
		"a hash inside of a value is no comment":        {"A=b # c\n", "b # c"},
	} {
		if got := ParseEnv(tc.text)["A"]; got != tc.want {
			t.Errorf("%s: %q, want %q", sentence, got, tc.want)
		}
	}
}

func FuzzEnvFile(f *testing.F) {
	for _, s := range []string{"A=b\n", "A=\"b \\\nc\" 'd'\n", "A='b", "A=b\\", "#\\\n;\nexport A=b\nA==\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for name := range ParseEnv(in) {
			if !isVariable(name) {
				t.Fatalf("%q is no variable", name)
			}
		}
	})
}
