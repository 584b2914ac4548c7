package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHelpFitsIntoItsColumns(t *testing.T) {
	for _, line := range []string{"", "init", "check", "status", "doctor", "discover", "run", "nat", "nat lookup", "conntrack", "conntrack list", "conntrack count", "conntrack flush", "units", "install", "uninstall", "cluster", "cluster install", "cluster status", "cluster uninstall", "version", "completion"} {
		r := plain(t, append(strings.Fields(line), "--help")...).exits(0)
		for text := range strings.Lines(r.stdout) {
			if utf8.RuneCountInString(strings.TrimRight(text, "\n")) > lineWidth {
				t.Errorf("%s --help: more than %d columns: %s", line, lineWidth, text)
			}
		}
	}
}

func TestReflow(t *testing.T) {
	long := strings.Repeat("word ", 30)
	name := "--a-flag-whose-name-takes-all-the-room NAME"
	got := reflow("OPTIONS:\n   --x NAME [ --x NAME ]  " + long + "\n   " + name + "  text\n\n   Output:\n\n   -o  form\n")
	want := "OPTIONS:\n" +
		"   --x NAME  " + strings.TrimSpace(strings.Repeat("word ", 17)) + "\n" +
		"             " + strings.TrimSpace(strings.Repeat("word ", 13)) + "\n" +
		"   " + name + "\n" +
		"             text\n\n   Output:\n\n   -o    form\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
